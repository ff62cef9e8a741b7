"""Fixtures that every suite may use."""

from tests.fixtures.sandbox import fresh_sandbox, in_sandbox, sandbox, workplace

__all__ = ["fresh_sandbox", "in_sandbox", "sandbox", "workplace"]
