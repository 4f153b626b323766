"""The machine's end of the interop suite: starts, stops, kills and questions nvmfd for the guest.

    control.py NVMFD DATA_DIR LOG_DIR

Listens on a free port of 127.0.0.1 (the guest's 10.0.2.2), prints the port, serves until SIGTERM. One connection carries
one command line and its answer; the answer's first word is `ok` or `error`. NAME names an nvmfd process, FILE a file in
DATA_DIR.

    start NAME [ARG...]  start nvmfd; without ARGs, with those of the last time     ok IO_PORT DISCOVERY_PORT SPARE_PORT
                         `{spare}` in an ARG stands for a port that nobody has
    stop NAME            SIGTERM, then wait for the end                             ok EXIT_STATUS
    kill NAME            SIGKILL                                                    ok
    tell NAME LINE       one line of nvmfd's control language on its stdin          nvmfd's own answer
    fds NAME             open file descriptors, now and just after the start        ok NOW THEN
    banner NAME          what nvmfd printed when it started                         ok, then the lines
    log NAME             what nvmfd has logged                                      ok, then the lines
    size FILE BYTES      create FILE, or change its size                            ok
"""

import os
import pathlib
import queue
import shlex
import signal
import socket
import socketserver
import subprocess
import sys
import threading

START_SECONDS = 20
STOP_SECONDS = 20
ANSWER_SECONDS = 10


class ControlError(Exception):
    """A command that could not be done; its text goes to the guest."""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Daemon:
    """One named nvmfd: its ports and arguments outlive the process, so that a restart looks the same to the host."""

    def __init__(self, program, name, data_dir, log_dir):
        self.program = program
        self.data_dir = data_dir
        self.log_path = log_dir / f"{name}.log"
        self.log_path.unlink(missing_ok=True)
        self.ports = (free_port(), free_port(), free_port())
        self.arguments = []
        self.process = None

    def start(self, arguments):
        if self.process and self.process.poll() is None:
            raise ControlError("already running")
        self.arguments = arguments or self.arguments
        command = [self.program, "--stdin-control", "--bind", "127.0.0.1", "-p", str(self.ports[0])]
        command += ["-P", str(self.ports[1])]
        command += [argument.replace("{spare}", str(self.ports[2])) for argument in self.arguments]
        with self.log_path.open("ab") as log:
            log.write(f"control: {shlex.join(command)}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=self.data_dir, text=True
            )
        self.banner = []
        self.answers = queue.Queue()
        ready = threading.Event()
        threading.Thread(target=self._read_stdout, args=(self.process.stdout, ready), daemon=True).start()
        if not ready.wait(START_SECONDS) or self.process.poll() is not None:
            self.process.kill()
            raise ControlError(f"nvmfd did not start: {self.log()[-500:]}")
        self.fds_at_start = self.fds()
        return " ".join(map(str, self.ports))

    def _read_stdout(self, stdout, ready):
        for line in stdout:
            line = line.rstrip("\n")
            if line.split(" ", 1)[0] in ("ok", "error"):
                self.answers.put(line)
                continue
            self.banner.append(line)
            if line == "nvmfd: serving":
                ready.set()
        ready.set()  # the process ended: whoever waits for it shall look

    def signal(self, number):
        self.process.send_signal(number)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise ControlError(f"still running {STOP_SECONDS} s after signal {number}") from None

    def tell(self, line):
        while not self.answers.empty():
            self.answers.get()
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
            return self.answers.get(timeout=ANSWER_SECONDS)
        except queue.Empty:
            raise ControlError("no answer from nvmfd") from None

    def fds(self):
        """Open file descriptors, but for what a reactor's io_uring has of its own (the ring and an
        eventfd): that comes with the first file and stays as long as the reactor."""
        folder = f"/proc/{self.process.pid}/fd"
        links = []
        for name in os.listdir(folder):
            try:
                links.append(os.readlink(f"{folder}/{name}"))
            except FileNotFoundError:
                pass
        return len(links) - 2 * links.count("anon_inode:[io_uring]")

    def log(self):
        return self.log_path.read_text(errors="replace")


class Control(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, program, data_dir, log_dir):
        super().__init__(("127.0.0.1", 0), Handler)
        self.program = program
        self.data_dir = data_dir
        self.log_dir = log_dir
        self.daemons = {}

    def run(self, command, name, arguments):
        if command == "size":
            path = self.data_dir / pathlib.PurePath(name).name
            with path.open("ab") as file:
                file.truncate(int(arguments[0]))
            return "ok"
        if command == "start":
            if name not in self.daemons:
                self.daemons[name] = Daemon(self.program, name, self.data_dir, self.log_dir)
            return f"ok {self.daemons[name].start(arguments)}"
        daemon = self.daemons[name]
        match command:
            case "stop":
                return f"ok {daemon.signal(signal.SIGTERM)}"
            case "kill":
                daemon.signal(signal.SIGKILL)
                return "ok"
            case "tell":
                return daemon.tell(" ".join(arguments))
            case "fds":
                return f"ok {daemon.fds()} {daemon.fds_at_start}"
            case "banner":
                return "\n".join(["ok", *daemon.banner])
            case "log":
                return f"ok\n{daemon.log()}"
        raise ControlError(f"no command {command}")

    def close(self):
        for daemon in self.daemons.values():
            if daemon.process and daemon.process.poll() is None:
                daemon.process.kill()
                daemon.process.wait()


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        try:
            command, name, *arguments = shlex.split(self.rfile.readline().decode())
            answer = self.server.run(command, name, arguments)
        except (ControlError, OSError, ValueError, IndexError) as error:
            answer = f"error {error}"
        except KeyError as error:
            answer = f"error no nvmfd named {error}"
        self.wfile.write(f"{answer}\n".encode())


def main():
    program, data_dir, log_dir = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    server = Control(program, data_dir, log_dir)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(server.server_address[1], flush=True)
    try:
        server.serve_forever()
    finally:
        server.close()


if __name__ == "__main__":
    main()
