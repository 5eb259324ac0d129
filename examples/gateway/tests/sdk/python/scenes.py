"""What the scenes of all SDKs share: where the gateway is, and a runner."""

import os
import sys
import traceback

URL = os.environ["GATEWAY_URL"]
KEY = os.environ["GATEWAY_KEY"]
# Another gateway, which lets one call a minute through to each provider.
LIMITED_URL = os.environ["LIMITED_URL"]

# Seconds for one call; it takes half a second on an idle machine.
TIMEOUT = 60

# 12 MB, more than the gateway's limit for a body.
TOO_LARGE = "river " * 2_000_000
TIMES_TOO_LARGE = 20

# Scenes that are not run, by name.
SKIPPED = os.environ.get("SCENES_SKIPPED", "").split()

SCHEMA = {
    "type": "object",
    "properties": {
        "place": {"type": "string"},
        "unit": {"type": "string", "enum": ["metres", "feet"]},
    },
    "required": ["place", "unit"],
    "additionalProperties": False,
}
ARGUMENTS = {"place": "river", "unit": "metres"}
QUESTION = "How high is the river?"

_scenes = []


def scene(run):
    if run.__name__ not in SKIPPED:
        _scenes.append(run)
    return run


def raises(kind, call):
    """The error of `call`, which must be exactly of this kind."""
    try:
        answer = call()
    except kind as error:
        assert type(error) is kind, f"{type(error)} is not {kind}"
        return error
    raise AssertionError(f"no error, but {answer!r}")


def is_sentences(text):
    assert text and text[0].isupper() and text.endswith("."), text


def main():
    failed = 0
    for run in _scenes:
        try:
            run()
        except Exception:
            failed += 1
            print(f"FAILED {run.__name__}")
            traceback.print_exc(file=sys.stdout)
        else:
            print(f"ok {run.__name__}")
    print(f"{len(_scenes) - failed} passed, {failed} failed")
    sys.exit(1 if failed or not _scenes else 0)
