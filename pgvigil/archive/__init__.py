"""A table as an object in S3: exported as a stream, proven by reading back, and brought back."""
