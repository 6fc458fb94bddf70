"""What follows from a run's record: verdict, figures, curves, how to use its model. No HTML here."""
