"""What exporting costs in answers: exact match on held-out rows, in PyTorch and in llama.cpp.

python benchmarks/export_answers.py RUN ROWS [--quantizations f16,q8_0,q4_k_m]

Greedy answers to every row's last turn, through the same template; the same expected texts. After `make
demo`: RUN is fine_tuned_models/demo3_training, ROWS demos/datasets/medical/medical_qa_held_out.jsonl.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from llamafarm import terminal  # noqa: E402


def main() -> None:
    """Print a table; ends with 1 if a type loses more than five points."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--quantizations", default="f16,q8_0,q4_k_m")
    options = parser.parse_args()
    from llamafarm.data.reading.records import read_data_file
    from llamafarm.deploy.convert import ExportWishes, export
    from llamafarm.evaluation.answers import score_answers
    from llamafarm.inference.generate import GenerationSettings
    from llamafarm.inference.llamacpp import LlamaOptions, LlamaServer
    from llamafarm.inference.open import open_final_model
    from llamafarm.inference.served import LlamaAnswerer
    from llamafarm.model.bundle import final_model_in

    conversations = read_data_file(options.rows).conversations
    prompts = [one.messages[:-1] for one in conversations]
    expected = [one.messages[-1].content for one in conversations]
    settings = GenerationSettings(64, 0.0, 1.0, None, 1.0)
    terminal.result("| form | exact match | ends by itself | MiB | seconds |\n|---|---|---|---|---|")

    def show(name: str, answers: list[object], num_bytes: int, seconds: float) -> float:
        scores = score_answers(answers, expected, [0] * len(expected), settings.max_new_tokens)
        size = f"{num_bytes / 2**20:.1f}" if num_bytes else ""
        rates = f"{scores.mean('exact_match'):.1%} | {scores.mean('stop_rate'):.1%}"
        terminal.result(f"| {name} | {rates} | {size} | {seconds:.1f} |")
        return scores.mean("exact_match")

    started = time.perf_counter()
    answers = open_final_model(final_model_in(options.run), "cpu").answerer.answer_all(prompts, settings)
    trained = show("PyTorch, fp32", list(answers), 0, time.perf_counter() - started)
    lost = []
    with tempfile.TemporaryDirectory() as name:
        for quantization in options.quantizations.split(","):
            file = Path(name) / f"{quantization}.gguf"
            done = export(options.run, file, ExportWishes("gguf", quantization, verifies=False))
            started = time.perf_counter()
            with LlamaServer(file, LlamaOptions()) as server:
                answerer = LlamaAnswerer(server)
                found = [answerer.stream(prompt, settings, lambda _: None) for prompt in prompts]
            lost.append(
                trained - show(quantization, list(found), done.num_bytes, time.perf_counter() - started)
            )
    sys.exit(max(lost) > 0.05)


if __name__ == "__main__":
    main()
