"""Becomes one container's process: its own root, hostname, user and no rights, then the command. Runs on its own,
inside new mount, UTS and (for a service) network namespaces; reads what to do as one line of JSON.

The root is what an image's build left, over this machine's own programs; nothing else of the machine is there.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

OF_MACHINE = ("bin", "etc", "lib", "lib64", "sbin", "usr", "var")
KERNEL = ("dev", "proc", "sys")


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def build_root(spec: dict) -> Path:
    """Each folder of the root is an overlay of its own: no layer may lie inside another."""
    place = Path(spec["place"])
    layers = [Path(layer) for layer in spec["layers"]]
    if spec["upper"] is None:  # what a service writes goes with it
        mount("-t", "tmpfs", "-o", "mode=0755", "none", str(place))
    work, root = place / "work", place / "root"
    root.mkdir(exist_ok=True)
    mount("--bind", str(root), str(root))
    upper = Path(spec["upper"] or place / "upper")
    names = {child.name for layer in [*layers, upper] if layer.exists() for child in layer.iterdir()}
    of_machine = (*OF_MACHINE, Path(sys.executable).resolve().parts[1])
    for name in sorted({*names, *of_machine}):
        here = Path("/", name)
        if here.is_symlink():  # /bin -> usr/bin
            (root / name).symlink_to(here.readlink())
            continue
        lower = [layer / name for layer in layers if (layer / name).exists()]
        lower += [here] if name in of_machine and here.exists() else []
        overlay(root / name, upper / name, work / name, lower)
    for name in KERNEL:
        (root / name).mkdir(exist_ok=True)
        mount("--rbind", f"/{name}", str(root / name))
    for name in ("run", "tmp"):
        (root / name).mkdir(exist_ok=True)
    for parent in Path(sys.executable).resolve().parents:  # the image's Python may be read by everybody
        inside = root / parent.relative_to("/")
        inside.chmod(inside.stat().st_mode | 0o555)
    return root


def overlay(root: Path, upper: Path, work: Path, lower: list[Path]) -> None:
    for folder in (root, upper, work):
        folder.mkdir(parents=True, exist_ok=True)
    if lower:
        shown = ":".join(map(str, lower))
        mount("-t", "overlay", "overlay", "-o", f"lowerdir={shown},upperdir={upper},workdir={work}", str(root))
    else:
        mount("--bind", str(upper), str(root))


def furnish(root: Path, spec: dict) -> None:
    for name, text in spec["files"].items():
        path = root / name.lstrip("/")
        path.unlink(missing_ok=True)
        path.write_text(text)
    for target in spec["tmpfs"]:
        mount("-t", "tmpfs", "-o", "mode=1777,noexec,nosuid,nodev", "none", str(root / target.lstrip("/")))
    for source, target, read_only in spec["mounts"]:
        place = root / target.lstrip("/")
        if Path(source).is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.touch()
        mount("--bind", source, str(place))
        if read_only:
            mount("-o", "remount,ro,bind", str(place))
    if spec["read_only"]:
        own = {*spec["tmpfs"], *(target for _, target, _ in spec["mounts"]), *(f"/{name}" for name in KERNEL)}
        for child in [root, *root.iterdir()]:
            if child.is_mount() and not child.is_symlink() and f"/{child.name}" not in own:
                mount("-o", "remount,ro,bind", str(child))


def main() -> None:
    spec = json.loads(sys.stdin.readline())
    root = build_root(spec)
    furnish(root, spec)
    if spec["hostname"]:
        subprocess.run(["hostname", spec["hostname"]], check=True)
    os.chroot(root)
    os.chdir(spec["workdir"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execvpe(spec["command"][0], spec["command"], spec["environment"])


if __name__ == "__main__":
    main()
