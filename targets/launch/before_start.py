"""What is done before a server starts: a look whether this machine holds it now."""

from __future__ import annotations

#: Of a shell; `@ASKED@` is what `check` is asked about. False on a plain no (exit code 3) alone.
_LOOK = '[ "${TIGHTFIT_CHECK:-1}" = 0 ] || ! command -v optimize > /dev/null || optimize check --live @ASKED@ >&2 || [ $? != 3 ]'
#: Said where it stands.
WHY = "Looks first whether this machine holds it now, where tightfit is installed; TIGHTFIT_CHECK=0 skips that."


def look(asked: str) -> str:
    """Return a shell command that fails where this machine does not hold a server. `asked`: a result's folder as the shell names it, or
    `-- ` and the server's command line.
    """
    return _LOOK.replace("@ASKED@", asked)


def install_and_look(asked: str) -> str:
    """Return a shell command for a container that brings tightfit along: it fails on a plain no alone, not where nothing can be
    installed.
    """
    return f'[ "${{TIGHTFIT_CHECK:-1}}" = 0 ] || pip install -q tightfit || exit 0; {look(asked)}'


def look_first(asked: str) -> str:
    """Return the lines of a shell script that stop it there, with exit code 3."""
    return f"# {WHY}\n{look(asked)} || exit 3\n"
