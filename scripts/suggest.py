"""Say which name was probably meant: `suggest.py KIND NAME KNOWN…`. Used by the Makefile; any Python 3."""

import difflib
import sys


def suggest(kind, name, known):
    """One line that names the unknown `name`, its closest relative in `known` when there is one, and all of `known`."""
    close = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), list(close), n=1, cutoff=0.5)
    meant = "did you mean %s? " % close[matches[0]] if matches else ""
    return "unknown %s '%s': %sknown: %s" % (kind, name, meant, " ".join(known))


if __name__ == "__main__":
    print(suggest(sys.argv[1], sys.argv[2], sys.argv[3:]))
