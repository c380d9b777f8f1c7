"""The servers that run on Node.js: Haraka, and one made of nodemailer's smtp-server. Both forget what they take.

It knows how each is told what a run wants. Their packages are pinned in peers/node, and installed by `install`.
"""

import json
import re
import shutil

from ..contender import Contender, Setup, flags, said_at_its_end
from ..process import Server
from .install import HERE, NODE

SIZE_LIMIT = 2**30  # octets of a message: more than any row sends
SMTP_INI = """\
listen=127.0.0.1:{port}
{smtps}
public_ip=127.0.0.1
nodes={nodes}
"""
AUTH_INI = """\
[core]
methods=PLAIN
constrain_sender=false
[users]
{user}={password}
"""


class NodePackage(Contender):
    """A server of an npm package."""

    package: str
    share = 0.1

    def missing(self) -> str | None:
        if shutil.which("node") is None:
            return "node is not installed (Debian: apt install nodejs)"
        if not (NODE / "node_modules" / self.package).is_dir():
            return f"{self.package} is not installed (python -m benchmarks peers)"
        return None

    def version(self) -> str:
        try:
            found = json.loads((NODE / "node_modules" / self.package / "package.json").read_text())
        except OSError:
            return "unknown"
        return str(found["version"])

    def count(self, server: Server, setup: Setup) -> int:
        return said_at_its_end(server)


class Haraka(NodePackage):
    name = "haraka"
    title = "Haraka on Node.js, plugin queue/discard; a cluster if there are several workers"
    package = "Haraka"
    # It announces PIPELINING, but answers 503 to commands that come together with the end of a message.
    can = frozenset({"tls", "starttls", "auth", "workers", "count"})

    def command(self, setup: Setup) -> list[str]:
        config = setup.folder / "config"
        (setup.folder / "plugins").mkdir()
        config.mkdir()
        shutil.copy(HERE / "haraka" / "benchmark.js", setup.folder / "plugins")
        plugins = ["benchmark", "queue/discard"]
        if setup.certificate is not None and setup.key is not None and setup.tls != "none":
            shutil.copy(setup.certificate, config / "tls_cert.pem")
            shutil.copy(setup.key, config / "tls_key.pem")
            plugins.insert(0, "tls")
        if setup.login is not None:
            user, password = setup.login
            (config / "auth_flat_file.ini").write_text(AUTH_INI.format(user=user, password=password))
            plugins.insert(0, "auth/flat_file")
        smtps = f"smtps_port={setup.port}" if setup.tls == "implicit" else ""
        nodes = setup.workers if setup.workers > 1 else 0
        (config / "smtp.ini").write_text(SMTP_INI.format(port=setup.port, smtps=smtps, nodes=nodes))
        # Haraka's own: it does without none of its sections.
        own = (NODE / "node_modules" / "Haraka" / "config" / "connection.ini").read_text()
        (config / "connection.ini").write_text(re.sub("(?m)^bytes=.*", f"bytes={SIZE_LIMIT}", own))
        (config / "log.ini").write_text("[main]\nlevel=error\nformat=default\n")
        (config / "plugins").write_text("\n".join(plugins) + "\n")
        (config / "me").write_text("localhost\n")
        program = NODE / "node_modules" / "Haraka" / "bin" / "haraka"
        return ["node", str(program), "-c", str(setup.folder)]


class Nodemailer(NodePackage):
    name = "nodemailer"
    title = "nodemailer's smtp-server on Node.js, the message's stream goes nowhere"
    package = "smtp-server"
    can = frozenset({"tls", "starttls", "auth", "pipelining", "count"})

    def command(self, setup: Setup) -> list[str]:
        program = HERE / "node" / "nodemailer.js"
        return ["node", str(program), "--packages", str(NODE), *flags(setup)]
