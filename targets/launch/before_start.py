"""What a launch script does before it starts its server: it looks whether this machine holds the result now."""

from __future__ import annotations

#: Of a shell script; `@RESULT@` is the result's folder. Only a plain no (exit code 3) stops the start.
_LOOK = """# Looks first whether this machine holds it now, where tightfit is installed; TIGHTFIT_CHECK=0 skips that.
if [ "${TIGHTFIT_CHECK:-1}" != 0 ] && command -v optimize > /dev/null; then
  optimize check --live @RESULT@ >&2 || { code=$?; [ "$code" != 3 ] || exit 3; }
fi
"""


def look_first(result: str) -> str:
    """Return the lines of a shell script that check this machine. `result`: the folder as the script names it."""
    return _LOOK.replace("@RESULT@", result)
