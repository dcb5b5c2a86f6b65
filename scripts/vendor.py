"""Copies the front-end files the portal serves from node_modules to iiot/portal/static/vendor.

Versions are pinned in package.json, hashes in package-lock.json (checked by `npm ci`). There is no bundler: browsers get
the files their authors published, minus the source map comments, whose maps are not served.
"""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = ROOT / "node_modules"
VENDOR = ROOT / "iiot" / "portal" / "static" / "vendor"
FILES = {
    "@tabler/core/dist/css/tabler.min.css": "tabler.css",
    "htmx.org/dist/htmx.min.js": "htmx.js",
    "socket.io-client/dist/socket.io.esm.min.js": "socket.io.js",
    "uplot/dist/uPlot.esm.js": "uplot.js",
    "uplot/dist/uPlot.min.css": "uplot.css",
    "@fontsource-variable/inter/index.css": "inter.css",
}
FONTS = "@fontsource-variable/inter/files"
LICENCES = ("@tabler/core", "htmx.org", "socket.io-client", "uplot", "@fontsource-variable/inter")
SOURCE_MAP = re.compile(r"\n?(//# sourceMappingURL=\S+|/\*# sourceMappingURL=\S+ \*/)\s*$")


def stamp() -> str:
    """SHA-256 of what the vendored files were made from: this program and the lock."""
    return hashlib.sha256(Path(__file__).read_bytes() + (ROOT / "package-lock.json").read_bytes()).hexdigest()


def copy() -> list[str]:
    """Fill the vendor folder anew; returns the names written. Raises FileNotFoundError when `npm ci` has not run."""
    shutil.rmtree(VENDOR, ignore_errors=True)
    (VENDOR / "files").mkdir(parents=True)
    for source, name in FILES.items():
        (VENDOR / name).write_text(SOURCE_MAP.sub("\n", (MODULES / source).read_text()))
    for font in sorted((MODULES / FONTS).glob("*-wght-normal.woff2")):
        shutil.copyfile(font, VENDOR / "files" / font.name)
    (VENDOR / "LICENCES.txt").write_text("\n\n".join(_licence(package) for package in LICENCES))
    (VENDOR / ".stamp").write_text(stamp())
    return sorted(path.name for path in VENDOR.rglob("*") if path.is_file())


def _licence(package: str) -> str:
    about = json.loads((MODULES / package / "package.json").read_text())
    texts = [path.read_text() for path in sorted((MODULES / package).glob("LICENSE*"))]
    return "\n".join([f"{package} {about['version']} ({about.get('license', 'see text')})", *texts])


def main() -> int:
    """Copy unless the folder is up to date; exit code 1 tells what to run first."""
    mark = VENDOR / ".stamp"
    if "--force" not in sys.argv and mark.exists() and mark.read_text() == stamp():
        return 0
    try:
        names = copy()
    except FileNotFoundError as error:
        sys.stderr.write(f"{error.filename} is missing. Run `npm ci` first.\n")
        return 1
    sys.stdout.write(f"{len(names)} front-end files in {VENDOR.relative_to(ROOT)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
