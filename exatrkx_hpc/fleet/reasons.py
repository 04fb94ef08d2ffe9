"""Why a server failed: extract the error lines from its log."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

#: A line of Triton's log: level, time, process and source line.
_TRITON = re.compile(r"([EFIW])\d{4} [\d:.]+ +\d+ [\w./-]+:\d+\] ?(.*)")
#: Triton logs these on every machine without a GPU.
_HARMLESS = ("CudaDriverHelper has not been initialized", "Unable to allocate pinned system memory")
#: Triton's prefixes of a reason: the backend and the model loader log the same reason.
_AROUND = re.compile(r"^(ERROR: Failed to create instance: |failed to load '[^']*' version \d+: (Internal: )?)")
#: Errors that follow from another failure.
_CONSEQUENCE = re.compile(r"ensemble '.*' depends on|creating server: Internal - failed to load all models")
#: Error lines of other programs: the shell, Slurm, the engines, nginx, Python, the kernel.
_TELLING = re.compile(
    r"^\s*(error|fatal|failed|panic)\b[:!]?|^[\w./ -]{1,60}: (error|fatal)\b|\[(emerg|alert|crit)\]|"
    r"^(\w+\.)*\w*(Error|Exception|Interrupt): |: command not found$|: No such file or directory$|: Permission denied$|"
    r"out of memory|oom-kill|No space left on device|Disk quota exceeded|Address already in use|"
    r"Segmentation fault|Bus error|core dumped|CANCELLED AT|DUE TO|error while loading shared libraries",
    re.IGNORECASE,
)
_LONGEST = 400
#: What to do about a known end of a server, by a part of its error; the first that is found counts.
_REMEDIES = (
    (r"unable to find backend", "use a server.image with this backend, or correct the model's config.pbtxt"),
    (r"already in use|no three free ports", "choose another server.base_port"),
    (r"CUDA.*out of memory|out of memory.*CUDA|cudaErrorMemoryAllocation", "free the GPU, or lower server.instances"),
    (r"out of memory|oom-kill|std::bad_alloc|MemoryError", "raise job.memory, or lower server.instances"),
    (
        r"manifest unknown|FAILED to lookup|image .*(not found|not known|does not exist)|could not open image",
        "pull the image with 'exatrkx-hpc setup', or correct server.image",
    ),
    (r"unrecognized option", "correct server.extra_arguments"),
    (r"command not found|(tritonserver|env).*No such file or directory", "correct server.triton and server.engine"),
    (r"No space left on device|quota exceeded", "free space, then restart the server"),
    (r"failed to load '", "check the models with 'exatrkx-hpc models check'"),
)


def reasons(text: str) -> tuple[str, ...]:
    """Return the error lines of a log, each once, in order, without time and source line."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        said = _said(line)
        if said and not any(word in said for word in _HARMLESS):
            found[_AROUND.sub("", said)] = said
    causes = {core: said for core, said in found.items() if not _CONSEQUENCE.search(said)}
    return tuple(said[:_LONGEST] for said in (causes or found).values())


def with_remedy(note: str) -> str:
    """Return a server's note, with what to do about it if its end is a known one."""
    remedy = next((remedy for error, remedy in _REMEDIES if re.search(error, note, re.IGNORECASE)), "")
    return f"{note}; {remedy}" if remedy else note


def reasons_of(texts: Mapping[str, str], *, most: int = 10) -> Iterator[str]:
    """Yield `NAME: line` for each reason in the logs `texts` (name to text); a reason of several logs once."""
    who: dict[str, list[str]] = {}
    for name, text in texts.items():
        for line in reasons(text):
            who.setdefault(line, []).append(name)
    for line, names in list(who.items())[:most]:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"{names[0]}{more}: {line}"
    if len(who) > most:
        yield f"and {len(who) - most} more"


def _said(line: str) -> str:
    """Return the error in a line of a log, or ''."""
    if match := _TRITON.match(line):
        return match[2].strip('" ') if match[1] in "EF" else ""
    return line.strip() if not line.startswith(("|", "+")) and _TELLING.search(line) else ""
