"""A page as a reader runs it: the blocks of README.md and docs/, in their order, in one folder.

What a block is says the word behind its three backticks:

- `sh`: commands, run line by line. datakit's own run in this process, made small by MORE; `make` is run dry.
- `python`: run, all of a page in one namespace. If it begins with `# NAME.py` it is written to that file instead.
- `yaml`: if it begins with `# NAME.yaml` it is written to that file, else it must be fields of a recipe.
- `text`: what the commands before it print, `…` for anything.
- `diff`: a change of datakit's own code, applied to a copy of it.
- none: shown only.

A block of `sh` or `python` that begins with `# not tested: …` is not run; it says why. Its commands must be understood.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from datakit.cli import main, parser
from datakit.pretrain.recipe import Pretrain
from datakit.recipe import Recipe

ROOT = Path(__file__).resolve().parent.parent
NOT_TESTED = re.compile(r"# not tested: (.+)")
TINY = {
    "selectivemae": "size=tiny image_px=32 patch_px=8 decoder_depth=1",
    "mae": "size=tiny image_px=32 patch_px=8 decoder_depth=1",
    "raw_distill": "student.model=convnext_atto teacher.model=convnext_atto teacher.weights=teacher.pt "
    "image_px=32 labels=0",
}  # of an objective
RUN = "batch=4 precision=float32 checkpoint_every=2 feeding.threads=1"
MORE = {  # what makes a command small, and nothing else of it
    "build": "--workers 0",
    "sign": "--workers 0",
    "probe": "--seeds 1 --epochs 1 --method knn --method linear",
    "doctor": "--seconds 0.5",
}


APART = ("__main__", "import mlcroissant")  # code with these is run by a process of its own: of workers, of warnings


@dataclass(frozen=True)
class Block:
    """A block of a page. line: of its first line."""

    page: str
    line: int
    kind: str
    text: str

    @property
    def untested(self) -> str:
        """Why it is not run; "" where it is."""
        found = NOT_TESTED.match(self.text)
        return found[1] if found else ""

    @property
    def file(self) -> str:
        """The file that its first line names; "" where it names none."""
        found = re.match(r"# (\S+\.(?:py|yaml))$", self.text.partition("\n")[0])
        return found[1] if found else ""

    @property
    def commands(self) -> list[str]:
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def pages() -> list[str]:
    """README.md and all of docs/, as paths from the top."""
    return ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def blocks(page: str) -> list[Block]:
    """The blocks of a page in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, text[: m.start(2)].count("\n") + 1, m[1], m[2]) for m in found]


class Reader:
    """Runs blocks in the folder that the process is in. changes: texts of the page, and what stands for them here."""

    def __init__(self, changes: dict[str, str]) -> None:
        self.changes = changes
        self.names: dict[str, Any] = {"__name__": "page"}
        self.changed = False  # datakit's own code, by the page
        self.printed = ""
        self.servers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        for server in reversed(self.servers):
            server.terminate()
            try:
                server.wait(60)
            except subprocess.TimeoutExpired:
                server.kill()

    def run(self, block: Block) -> None:
        text = block.text
        for one, other in self.changes.items():
            text = text.replace(one, other)
        block = Block(block.page, block.line, block.kind, text)
        getattr(self, block.kind or "shown")(block)

    def shown(self, block: Block) -> None:
        """Nothing to run."""

    def sh(self, block: Block) -> None:
        self.printed = ""
        for command in block.commands:
            self.printed += self.command(command)

    def command(self, line: str) -> str:
        """What a command prints; an AssertionError where it fails."""
        if re.search(r"[|&;<>*]|\$\(", re.sub(r"'[^']*'|#.*", "", line)):
            return shell(line)
        words = [str(Path(w).expanduser()) if w.startswith("~/") else w for w in shlex.split(line, comments=True)]
        if self.changed:
            words = ["python", "-m", "datakit.cli", *small(words[1:])] if words[0] == "datakit" else words
            return shell(f"PYTHONPATH=changed {shlex.join(words)}")
        if words[:2] == ["datakit", "browse"]:  # which stays until it is ended, and tells its address first
            told = subprocess.Popen([sys.executable, "-m", "datakit.cli", *words[1:]], stdout=subprocess.PIPE)
            self.servers.append(told)
            assert told.stdout is not None
            return told.stdout.readline().decode()
        if words[0] in ("datakit", ".venv/bin/datakit"):
            return own(words[1:])
        if words[0] == "dask":  # which stays, as its page says
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            self.servers.append(subprocess.Popen([sys.executable, "-m", *words], **quiet))  # type: ignore[call-overload]
            return ""
        if words[0] == "python" and words[1].endswith(".py"):
            with printing() as said:
                runpy.run_path(words[1])
            return said.getvalue()
        if words[0] == "make":
            return shell(shlex.join(["make", "--dry-run", "--directory", str(ROOT), *words[1:]]))
        return shell(line)

    def python(self, block: Block) -> None:
        if block.file:
            write(block)
        elif any(text in block.text for text in APART):
            Path("page.py").write_text(block.text)
            self.printed = shell(f"{sys.executable} page.py")
        else:
            code = "\n" * (block.line - 1) + block.text
            with printing() as said:
                exec(compile(code, block.page, "exec"), self.names)
            self.printed = said.getvalue()

    def yaml(self, block: Block) -> None:
        if block.file:
            write(block)
            return
        base = yaml.safe_load((ROOT / "recipes" / "opticalrs_files.yaml").read_text())
        path = Path("recipes") / "page.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({**base, **yaml.safe_load(block.text)}))
        Recipe.load(path)
        path.unlink()

    def text(self, block: Block) -> None:
        """All of its lines stand in what was printed last, one after another, however wide the gaps are."""
        printed = "\n".join(" ".join(line.split()) for line in self.printed.splitlines())
        lines = [" ".join(line.split()) for line in block.text.splitlines()]
        wanted = r"\n".join(".*".join(map(re.escape, line.split("…"))) for line in lines)
        assert re.search(wanted, printed), f"{block.page}:{block.line}: printed was\n{self.printed}"

    def diff(self, block: Block) -> None:
        """The package, changed, is what commands of the shell import from here on."""
        shutil.copytree(ROOT / "datakit", "changed/datakit", ignore=shutil.ignore_patterns("__pycache__"))
        for kind in ("recipes", "manifests"):
            shutil.copytree(ROOT / kind, f"changed/{kind}")
        Path("page.diff").write_text(block.text)
        shell("cd changed && git apply ../page.diff")
        self.changed = True


def understood(block: Block) -> int:
    """How many commands of datakit's a block has that is not run; each is one that there is, its recipe too."""
    if block.kind == "python":
        compile(block.text, block.page, "exec")
        return 0
    count = 0
    for line in block.commands:
        words = shlex.split(line, comments=True)
        for n in (n for n, word in enumerate(words) if word in ("datakit", "datakit.cli")):
            args = parser().parse_args(words[n + 1 :])
            if args.verb == "pretrain":
                Pretrain.load(args.recipe)
            count += 1
    return count


def write(block: Block) -> None:
    path = Path(block.file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.text)


def small(words: list[str], *sets: str) -> list[str]:
    """A command of datakit's with what makes it small. sets: further fields of a recipe of pretraining."""
    more = [word for each in words[:2] for word in shlex.split(MORE.get(each, ""))]
    if words[0] == "pretrain":
        kind = Pretrain.load(words[1]).objective.kind
        fields = ["budget={samples: 8}", *RUN.split(), *(f"objective.{each}" for each in TINY[kind].split()), *sets]
        more = ["--accelerator", "cpu", *(word for each in fields for word in ("--set", each))]
    return [*words, *more]


def own(words: list[str], *sets: str) -> str:
    """What a command of datakit's prints, run small in this process."""
    with printing() as said:
        status = main(small(words, *sets))
    assert status == 0, f"{shlex.join(words)}: {said.getvalue()}"
    return said.getvalue()


@contextlib.contextmanager
def printing() -> Any:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        yield said


def shell(line: str) -> str:
    """What a line of the shell prints. datakit is the one beside this Python."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", line], capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr
