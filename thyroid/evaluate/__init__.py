"""The evaluation step: lock operating points, choose the winner, score the test set, audit, gate and report."""
