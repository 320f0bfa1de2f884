"""Proofs by real processes, real Ray and real kills; docs/faults.md says what they promise and what was seen."""
