"""A whole little world to work on: PostgreSQL that archives through pgBackRest into S3, in one directory."""

from pgvigil.sandbox.lifecycle import down, up
from pgvigil.sandbox.model import Sandbox

__all__ = ["Sandbox", "down", "up"]
