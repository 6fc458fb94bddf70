"""Write documents of plain declarative English from the tables in `tools/facts/`, for pretraining.

A document is one of several kinds, so that a small model meets every fact in many wordings and orders:

    profile     one thing, its attributes in random order, each in a random wording
    compare     one attribute of several things
    repeat      one thing, one attribute, in several wordings
    list        several things that share a value
    sentences   free sentences of ordinary life

No document asks anything: the health facts are met as statements only, so that answering questions is left
to fine-tuning. Everything follows from the seed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

FACTS = Path(__file__).parent / "facts"


@dataclass(frozen=True)
class Topic:
    """Things of one kind, and how each of their attributes can be said."""

    name: str
    statements: Mapping[str, Sequence[str]]
    things: Sequence[Mapping[str, str]]

    def say(self, thing: Mapping[str, str], attribute: str, rng: random.Random) -> str:
        """Return one sentence that states an attribute of a thing."""
        return fill_in(rng.choice(self.statements[attribute]), thing["name"], thing[attribute])


def fill_in(wording: str, name: str, value: str = "") -> str:
    """Put a name and a value into a wording; `{Name}` and `{Value}` begin with a capital."""
    return wording.format(
        name=name, Name=name[:1].upper() + name[1:], value=value, Value=value[:1].upper() + value[1:]
    )


def load_health() -> dict:  # type: ignore[type-arg]
    """Return the health table as it stands in the file, questions and answers included."""
    return YAML(typ="safe").load(FACTS / "health.yaml")  # type: ignore[no-any-return]


def load_topics() -> tuple[list[Topic], list[str]]:
    """Return all topics, health first, and the free sentences."""
    everyday = YAML(typ="safe").load(FACTS / "everyday.yaml")
    tables = [load_health(), *everyday["topics"]]
    topics = [
        Topic(
            table["topic"],
            {name: attribute["statements"] for name, attribute in table["attributes"].items()},
            table["things"],
        )
        for table in tables
    ]
    return topics, list(everyday["sentences"])


def iterate_documents(seed: int, health_share: float) -> Iterator[str]:
    """Yield documents without end; `health_share` of them are about health conditions."""
    topics, sentences = load_topics()
    health, everyday = topics[0], topics[1:]
    rng = random.Random(seed)
    kinds = {_profile: 50, _compare: 20, _repeat: 15, _list: 10}
    while True:
        if rng.random() < 0.03:
            yield " ".join(rng.sample(sentences, rng.randint(2, 6)))
            continue
        topic = health if rng.random() < health_share else rng.choice(everyday)
        (write,) = rng.choices(list(kinds), list(kinds.values()))
        yield write(topic, rng)


def _profile(topic: Topic, rng: random.Random) -> str:
    thing = rng.choice(topic.things)
    attributes = rng.sample(list(topic.statements), len(topic.statements))
    return " ".join(topic.say(thing, attribute, rng) for attribute in attributes)


def _compare(topic: Topic, rng: random.Random) -> str:
    attribute = rng.choice(list(topic.statements))
    return " ".join(topic.say(thing, attribute, rng) for thing in rng.sample(topic.things, rng.randint(2, 5)))


def _repeat(topic: Topic, rng: random.Random) -> str:
    thing, attribute = rng.choice(topic.things), rng.choice(list(topic.statements))
    wordings = rng.sample(topic.statements[attribute], rng.randint(2, 4))
    return " ".join(fill_in(wording, thing["name"], thing[attribute]) for wording in wordings)


def _list(topic: Topic, rng: random.Random) -> str:
    thing, attribute = rng.choice(topic.things), rng.choice(list(topic.statements))
    sharing = [other for other in topic.things if other[attribute] == thing[attribute]]
    chosen = rng.sample(sharing, min(len(sharing), rng.randint(2, 4)))
    return " ".join(topic.say(other, attribute, rng) for other in chosen)
