"""What this machine has: its devices, the precision they compute in, their memory, what is installed.

torch is imported when a question needs it, so that this floor loads without it.
"""
