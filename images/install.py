"""Install the packages of a lock, each checked against its hash, in a fraction of the time that pip takes.

    python images/install.py LOCK [--into PYTHON] [--compile]

pip is there already and installs uv (images/build.lock); uv installs the rest. uv reads none of pip's settings, so a
private index, certificates and a proxy are passed on to it. If uv fails nevertheless, pip installs the rest, too.
"""

import argparse
import ast
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
HANDED_OVER = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "proxy": "ALL_PROXY",
}
"""Maps an option of pip to the environment variable of uv that means the same."""


def pip_settings() -> dict[str, str]:
    """Return the environment for uv that makes it do what pip would do.

    pip's settings come from its files and its environment. Variables that are already set win.
    """
    listed = subprocess.run([*PIP, "config", "list"], capture_output=True, text=True, check=True).stdout
    found = {}
    for section in ("global", "install", ":env:"):  # later sections win, as in pip
        for line in listed.splitlines():
            name, _, value = line.partition("=")
            option = name.removeprefix(f"{section}.")
            if option != name and option in HANDED_OVER:
                separator = "," if option == "find-links" else " "
                found[HANDED_OVER[option]] = separator.join(ast.literal_eval(value).split())
    # pip takes a version from any index that has it (the hashes prove that it is the right one), and trusts the
    # certificates that this machine trusts.
    return {"UV_INDEX_STRATEGY": "unsafe-best-match", "UV_SYSTEM_CERTS": "true"} | found | os.environ


def main() -> int:
    """Install the lock that the command line names, and return an exit code."""
    parser = argparse.ArgumentParser(description="Install the packages of a lock.")
    parser.add_argument("lock", type=Path)
    parser.add_argument("--into", default=sys.executable, metavar="PYTHON", help="of the environment to fill")
    parser.add_argument("--compile", action="store_true", help="write bytecode, but for the packages' own tests")
    options = parser.parse_args()
    tools = [*PIP, "install", "-qq", "--root-user-action", "ignore", "--require-hashes", "-r"]
    if code := subprocess.call([*tools, str(HERE / "build.lock")]):
        return code
    rest = ["--python", options.into, "--no-deps", "--require-hashes", "-r", str(options.lock)]
    uv = [sys.executable, "-m", "uv", "pip", "install", "--quiet", *rest]
    done = subprocess.run(uv, env=pip_settings(), stderr=subprocess.PIPE, text=True)
    if done.returncode:
        reason = " ".join(done.stderr.split())[:300]
        print(f"uv could not install {options.lock} ({reason}): pip does, which takes minutes", file=sys.stderr)
        pip = [*PIP, "--python", options.into, "install", "-qq", "--no-compile"]
        if code := subprocess.call([*pip, "--no-deps", "--require-hashes", "-r", str(options.lock)]):
            return code
    if options.compile:
        # Compile once, on all cores. Otherwise every process would compile where PYTHONDONTWRITEBYTECODE is set.
        every = (
            "import compileall, re, sysconfig; "
            "compileall.compile_dir(sysconfig.get_path('purelib'), quiet=2, workers=0, rx=re.compile('/tests?/'))"
        )
        subprocess.call([options.into, "-W", "ignore", "-c", every])
    return 0


if __name__ == "__main__":
    sys.exit(main())
