"""What converting costs: memory beyond the runtime's own, and time beside a plain copy of the same bytes.

python benchmarks/export_cost.py

A model of the 1B shape (Llama 3.2's: 16 layers, hidden 2048, feed-forward 8192, 32 and 8 heads, vocabulary
128,256, tied) with random bf16 weights and an adapter of rank 16 on all linear layers is made on the spot.
Each export runs in a process of its own, without the check, which loads the model. Held equal: the same
files; memory is what the process had in anonymous pages at its most, less what it had after its imports.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from llamafarm import terminal  # noqa: E402

SHAPE = {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}

EXPORT = """
import sys, time, json, threading
from pathlib import Path
from llamafarm.deploy.convert import ExportWishes, export

def private():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) * 1024

import torch, transformers, peft  # what every verb loads
before, most, running = private(), 0, True
def watch():
    global most
    while running:
        most = max(most, private())
        time.sleep(0.02)
thread = threading.Thread(target=watch, daemon=True); thread.start()
started = time.perf_counter()
wishes = ExportWishes(sys.argv[3], sys.argv[4], verifies=False, overwrites=True)
done = export(Path(sys.argv[1]), Path(sys.argv[2]), wishes)
seconds = time.perf_counter() - started
running = False; thread.join()
print(json.dumps({"seconds": seconds, "bytes": most - before, "written": done.num_bytes}))
"""


def make(folder: Path, vocab_size: int) -> Path:
    """Make a base and an adapter, and return the adapter's folder."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "llamafarm" / "assets" / "cria-5m")
    config = LlamaConfig(vocab_size=vocab_size, bos_token_id=1, eos_token_id=2, pad_token_id=0, **SHAPE)
    torch.set_default_dtype(torch.bfloat16)
    model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder / "base", max_shard_size="1GB")
    tokenizer.save_pretrained(folder / "base")
    adapted = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"))
    adapted.peft_config["default"].base_model_name_or_path = str(folder / "base")
    adapted.save_pretrained(str(folder / "adapter"))
    return folder / "adapter"


def copy_seconds(path: Path, folder: Path) -> float:
    """Return what a plain copy of a file takes."""
    started = time.perf_counter()
    shutil.copyfile(path, folder / "copy")
    seconds = time.perf_counter() - started
    (folder / "copy").unlink()
    return seconds


def main() -> None:
    """Print a table of formats."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab-size", type=int, default=128_256)
    parser.add_argument("--quantizations", default="f16,q8_0,q4_k_m")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adapter = make(folder, options.vocab_size)
        size = sum(path.stat().st_size for path in (folder / "base").glob("*.safetensors"))
        third = f"a third of it is {size / 3 / 2**20:,.0f} MiB"
        terminal.result(f"model {size / 2**30:.2f} GiB in bf16; {third}\n")
        head = "| export | written | seconds | copy of it | times the copy | memory beyond imports |"
        terminal.result(head)
        terminal.result("|---|---|---|---|---|---|")
        exports = [("safetensors", "f16"), *(("gguf", q) for q in options.quantizations.split(","))]
        for format_name, quantization in exports:
            output = folder / ("merged" if format_name == "safetensors" else "m.gguf")
            command = [sys.executable, "-c", EXPORT, str(adapter), str(output), format_name, quantization]
            done = subprocess.run(  # noqa: S603
                command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
            files = [output] if output.is_file() else sorted(output.glob("*.safetensors"))
            copied = sum(copy_seconds(file, folder) for file in files)
            label = format_name if format_name == "safetensors" else quantization
            terminal.result(
                f"| {label} | {found['written'] / 2**20:,.0f} MiB | {found['seconds']:.1f} | {copied:.1f} | "
                f"{found['seconds'] / copied:.1f} | {found['bytes'] / 2**20:,.0f} MiB |"
            )
            if output.is_dir():
                shutil.rmtree(output)
            else:
                output.unlink()


if __name__ == "__main__":
    main()
