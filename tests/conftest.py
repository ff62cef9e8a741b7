"""Fixtures that every suite may use."""

from tests.fixtures.backup import night
from tests.fixtures.sandbox import fresh_sandbox, in_sandbox, sandbox, workplace
from tests.fixtures.ssh import ssh_prefix

__all__ = ["fresh_sandbox", "in_sandbox", "night", "sandbox", "ssh_prefix", "workplace"]
