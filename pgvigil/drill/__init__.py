"""The restore drill: mark the source, restore to scratch, recover, prove equality, measure, clean up."""
