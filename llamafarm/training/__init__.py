"""The training of a run, told top to bottom in `run`: the loop, the step, the optimizer, the checkpoints."""
