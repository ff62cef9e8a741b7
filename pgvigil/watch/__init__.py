"""The watch itself: how fresh the proofs are, which alarms that calls for, and what Prefect has got wrong."""
