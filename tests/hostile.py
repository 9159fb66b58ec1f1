"""Text as a stranger's card, run folder or server may send it, and the check of what a terminal receives."""

import re

NAMES = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</pre></title></style><b>",
    "{{ 7 * 7 }}{% for %}",
    "\x1b]0;owned\x07\x1b[2J",
    "\x9b31m\x85\x90",
    "safe\u202egnp.exe",
    "a\nb\r\nc\u2028d\x0be",
    "in\u200bvisible\u2066\ufeff",
    "\x00",
    "\udc80",
    "model[best]",
    "x[/bold]",
    "[link=http://e.example]x[/link]",
    ":skull:",
    "$a$",
    "$",
    "a$b$c",
    r"$\frac$",
    r"\$x$ \input{/etc/passwd}",
    "{0.__class__} %s %(x)d",
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    ".hidden",
    "--help",
    "lerobot:org/name@1",
    "C:\\con",
    "nul",
    "",
    " ",
    "n" * 300,
    "器" * 300,
)
LEGITIMATE = (
    "β-VAE",
    "机器人",
    "pusht-diffusion + pusht-flow [0.4, 0.6]",
    "naïve_policy (2), v1.0=best@home",
    "роборука",
)

STYLES = re.compile(r"\x1b\[[0-9;]*m")  # what rich writes itself


def harmful(output):
    """The characters of a terminal's input that are neither text, line breaks nor colours."""
    return {character for character in STYLES.sub("", output) if not character.isprintable() and character != "\n"}
