"""Random and hostile input for every grader and parser: ``python -m eval_harness.fuzz``.

``corpus`` reads hand-made hostile texts, ``generate`` draws inputs, ``targets`` says what is called with them and what
must hold, ``driver`` runs it all in a grading pool, minimises what fails and counts.
"""
