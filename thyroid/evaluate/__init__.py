"""The evaluation step: operating points, winner, test set, audits, gate, report."""
