"""How near a text is to the expected one: token F1, ROUGE-L, chrF and BLEU, from 0 to 1.

chrF and BLEU are sacrebleu's. F1 is SQuAD's and ROUGE-L that of `rouge-score`, equal to them on ASCII. Beyond
it `rouge-score` sees no words at all, and SQuAD no punctuation, and one word in a Chinese sentence. Here
letters of any script make words; where one puts no blanks between words, each character is a word.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from rapidfuzz.distance import LCSseq
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

# Han, Hiragana, Katakana, Thai, Lao, Khmer and Burmese are written without blanks.
_UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0002fa1f"
)
_WORDS = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_chrf, _bleu = CHRF(), BLEU(effective_order=True)


def split_words(text: str) -> list[str]:
    """Return what stands between blanks, and by itself each character of a script without them."""
    return _WORDS.findall(text)


def token_f1(answer: str, expected: str) -> float:
    """Return the F1 of the words of both, counted, without case, punctuation and English articles.

    Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250. Two texts without words are equal, one is not.
    """
    found, wanted = Counter(_squad_words(answer)), Counter(_squad_words(expected))
    if not found or not wanted:
        return float(found == wanted)
    num_same = (found & wanted).total()
    return 2 * num_same / (found.total() + wanted.total())


def rouge_l(answer: str, expected: str) -> float:
    """Return the F1 of the longest common subsequence of words, without case.

    Lin 2004, https://aclanthology.org/W04-1013; as `rouge-score` computes it without stemming.
    """
    found, wanted = _rouge_words(answer), _rouge_words(expected)
    if not found or not wanted:
        return 0.0
    return 2 * float(LCSseq.similarity(found, wanted)) / (len(found) + len(wanted))


def chrf(answer: str, expected: str) -> float:
    """Return the F2 of character n-grams up to 6: Popović 2015, https://aclanthology.org/W15-3049."""
    return float(_chrf.sentence_score(answer, [expected]).score) / 100


def corpus_bleu(answers: Sequence[str], expected: Sequence[str]) -> float:
    """Return the BLEU of all answers together: Papineni et al. 2002, https://aclanthology.org/P02-1040."""
    if not answers:
        return 0.0
    # sacrebleu's own rounding gives equal texts a little more than 100.
    return min(float(_bleu.corpus_score(list(answers), [list(expected)]).score) / 100, 1.0)


def _squad_words(text: str) -> list[str]:
    """Return the words of SQuAD's normalisation: what punctuation joins is one word."""
    bare = "".join(one for one in _fold(text) if not _is_punctuation(one))
    return split_words(_ARTICLES.sub(" ", bare))


def _rouge_words(text: str) -> list[str]:
    """Return the runs of letters and digits, with the marks on them: Indian scripts write vowels so."""
    return split_words("".join(one if unicodedata.category(one)[0] in "LNM" else " " for one in _fold(text)))


def _fold(text: str) -> str:
    """Return a text without case, accented letters written in one way, emoji without their variants."""
    return unicodedata.normalize("NFC", text.lower()).replace("\ufe0f", "")


def _is_punctuation(one: str) -> bool:
    return one in string.punctuation or unicodedata.category(one).startswith("P")
