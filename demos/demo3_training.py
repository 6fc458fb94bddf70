"""Fine-tune the embedded model on medical questions, from set-up to a file for Ollama, in about two minutes.

python demos/demo3_training.py

Each step is a command that you can type yourself; it is printed before it runs. The questions at the end are
about conditions that no training row mentions: the base model has read about them, and learns to answer.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from llamafarm.interpreter import use_environment_of_checkout  # noqa: E402

STRATEGY = ["--strategy", "demo3_training", "--strategy-file", "demos/strategies.yaml"]
OUTPUT = Path("fine_tuned_models/demo3_training")
DATA = Path("demos/datasets/medical")
HELD_OUT = DATA / "medical_qa_held_out.jsonl"


def main() -> None:
    """Run the demo; leaves with the exit code of the first command that fails."""
    started = time.monotonic()
    say("1. Check that the strategy can run here")
    run("setup", "demos/strategies.yaml", "--strategy", "demo3_training", "--verify-only")

    say("2. Split the data: 90 % to train on, 10 % to watch the training with")
    split = ["demos/create_data_split.py", "--input", str(DATA / "medical_qa.jsonl"), "--eval-percent", "10"]
    run_python(*split, "--output-dir", str(OUTPUT / "data"))

    say("3. Ask the base model about held-out conditions, and measure it: before")
    run("evaluate", *STRATEGY, "--eval-dataset", str(HELD_OUT), "--base", "--examples", "4")

    say("4. Fine-tune")
    data = [f"--{part}-dataset={OUTPUT / 'data' / f'medical_qa_{part}.jsonl'}" for part in ("train", "eval")]
    run("train", *STRATEGY, *data, "--overwrite")

    say("5. The same questions, and the same measure: after")
    after = run("evaluate", *STRATEGY, "--eval-dataset", str(HELD_OUT), "--examples", "4")

    say("6. Ask one question, as you would from now on")
    run("complete", first_question(), *STRATEGY)

    say("7. Make a file for Ollama and llama.cpp, and show that it is the model that was trained")
    convert = ["convert", str(OUTPUT), str(OUTPUT / "export"), "--format", "ollama"]
    file = run(*convert, "--quantization", "q4_k_m", "--model-name", "medical-demo", "--overwrite")

    say("8. The same question to llama.cpp")
    run("complete", first_question(), "--model", file, "--temperature", "0")

    say(f"Done in {time.monotonic() - started:.0f} seconds")
    print(f"{after}\n")
    print(f"model    {OUTPUT / 'final_model'}   an adapter that PEFT loads, its tokenizer and template")
    print(f"export   {file}   with a Modelfile for Ollama beside it")
    print(f"report   {OUTPUT / 'report.html'}   all of it to look at, in a browser")
    print(f"metrics  {OUTPUT / 'metrics.jsonl'}   settings and versions: {OUTPUT / 'run.json'}")
    print(f"next     {shown('cli.py', 'complete', 'What causes asthma?', *STRATEGY)}")
    print("         put your own rows into a JSONL file and pass it as --train-dataset")


def say(line: str) -> None:
    """Print the headline of a step."""
    print(f"\n=== {line}", flush=True)


def first_question() -> str:
    """Return the first held-out question."""
    with HELD_OUT.open(encoding="utf-8") as file:
        return str(json.loads(file.readline())["instruction"])


def shown(*arguments: str) -> str:
    """Return a command as one types it."""
    return shlex.join(("python", *arguments))


def run(*arguments: str) -> str:
    """Run a verb of the command line and return what it prints as its result."""
    return run_python("cli.py", *arguments)


def run_python(*arguments: str) -> str:
    """Run a script with this Python, show what it prints, and return its result."""
    print(f"$ {shown(*arguments)}", flush=True)
    done = subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout.strip()


if __name__ == "__main__":
    use_environment_of_checkout()
    os.chdir(ROOT)
    main()
