"""What a run's figures say: each finding with what was seen, what it means, and the key to change.

Arithmetic over figures that others measured: the losses of a run's `history` (`overfitting`, `learning`), its
time (`speed`), its answers (`answers`). `training.watch` asks while a run goes on, `evaluation` and the
report after it. No torch.
"""
