"""Runs one untrusted program. A script of its own for :mod:`deepseek_eval.sandbox`, standard library only.

It gives away its rights before it looks at the program: resource limits, Landlock (files; Salaün 2021, Linux
``Documentation/userspace-api/landlock.rst``) and a seccomp filter (everything else). None of them needs privileges, and
none can be taken back, by root neither.

Arguments: memory in bytes, processor seconds, bytes of a file, file descriptor for the verdict. The program comes on
standard input; the current folder is the only one that it may write to.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import struct
import sys
import sysconfig
from pathlib import Path
from typing import Any

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""Machine -> its number in ``linux/audit.h``."""

# Numbers of system calls on x86_64 and aarch64 (None: it does not exist there).
DENIED: dict[str, tuple[int | None, int | None]] = {
    # network, and the way round the filter
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    # processes: none but its own
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "setpgid": (109, 154), "setsid": (112, 157), "setpriority": (141, 140), "sched_setaffinity": (203, 122),
    # limits and identity
    "prlimit64": (302, 261), "setrlimit": (160, 164), "setuid": (105, 146), "setgid": (106, 144),
    "setreuid": (113, 145), "setregid": (114, 143), "setresuid": (117, 147), "setresgid": (119, 149),
    "setgroups": (116, 159), "capset": (126, 91),
    # what Landlock leaves open about files
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "setxattrat": (463, 463), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "removexattrat": (466, 466), "utime": (132, None), "utimes": (235, None),
    "utimensat": (280, 88), "futimesat": (261, None), "mknod": (133, None), "mknodat": (259, 33),
    # memory that no limit counts
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "msgget": (68, 186),
    "semget": (64, 190), "userfaultfd": (323, 282),
    # the machine
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "fsopen": (430, 430), "open_tree": (428, 428), "move_mount": (429, 429),
    "mount_setattr": (442, 442), "bpf": (321, 280), "perf_event_open": (298, 241), "keyctl": (250, 219),
    "add_key": (248, 217), "request_key": (249, 218), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "kexec_load": (246, 104), "kexec_file_load": (320, 294),
    "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162), "acct": (163, 89),
    "quotactl": (179, 60), "syslog": (103, 116), "iopl": (172, None), "ioperm": (173, None),
    "open_by_handle_at": (304, 265),
}  # fmt: skip
CLONE = (56, 220)
CLONE3 = 435
CLONE_THREAD = 0x10000
EPERM, ENOSYS = 1, 38

# Landlock's rights: execute 1, write 2, read 4, list 8, remove (folder, file) 16 32, make (device, folder, file,
# socket, pipe, block device, link) 64 to 4096, refer 8192, truncate 16384.
HANDLED = (1 << 15) - 1
READ = 4 | 8
WRITE = READ | 2 | 32 | 256 | 16384
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
NEEDED_LANDLOCK = 3
"""Of the interface: the first one that guards truncation (Linux 6.2)."""

_libc = ctypes.CDLL(None, use_errno=True)


class _SocketFilter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_char_p)]


def landlock_version() -> int:
    """Of the kernel's interface; 0 without Landlock."""
    return max(0, int(_libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)))


def _check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), what)
    return result


def _limit(memory: int, seconds: int, file_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # a signal that has a name, and one that kills
    for which, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        resource.setrlimit(which, (value, value))


def _restrict_files() -> None:
    """Reading: Python itself and the libraries it loads. Writing: files of the current folder, and no folders in it."""
    _check(_libc.prctl(38, 1, 0, 0, 0), "no_new_privs")
    rules = struct.pack("=Q", HANDLED)
    ruleset = _check(_libc.syscall(LANDLOCK_CREATE, rules, ctypes.c_size_t(len(rules)), 0), "landlock_create_ruleset")
    paths = sysconfig.get_paths()
    readable = {paths["stdlib"], paths["platstdlib"], f"{sys.base_prefix}/lib", "/usr/lib", "/lib", "/lib64"}
    devices = {"/dev/null", "/dev/urandom", "/usr/share/zoneinfo", "/etc/ld.so.cache"}
    for path, rights in [(".", WRITE), *((path, READ) for path in readable | devices)]:
        if not Path(path).exists():
            continue
        rights &= READ | WRITE if Path(path).is_dir() else 2 | 4
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", rights, folder)
        _check(_libc.syscall(LANDLOCK_ADD, ruleset, 1, rule, 0), f"landlock_add_rule {path}")
        os.close(folder)
    _check(_libc.syscall(LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


def _filter(machine: str) -> bytes:
    """The seccomp program, in classic BPF: instructions of code, jump if true, jump if false, operand."""

    def op(code: int, operand: int, true: int = 0, false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, true, false, operand)

    load, equal, at_least, bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, error, die = 0x7FFF0000, 0x00050000, 0x80000000
    which = list(MACHINES).index(machine)
    numbers = [pair[which] for pair in DENIED.values() if pair[which] is not None]
    program = [op(load, 4), op(equal, MACHINES[machine], 1), op(give, die)]
    program += [op(load, 0), op(at_least, 0x40000000, 0, 1), op(give, die)]  # the x32 numbers
    for number in numbers:
        program += [op(equal, number or 0, 0, 1), op(give, error | EPERM)]
    program += [op(equal, CLONE3, 0, 1), op(give, error | ENOSYS)]  # its flags lie in memory; libraries then use clone
    program += [op(equal, CLONE[which], 0, 3), op(load, 16), op(bits, CLONE_THREAD, 1), op(give, error | EPERM)]
    return b"".join([*program, op(give, allow)])


def _restrict_calls(machine: str) -> None:
    program = _filter(machine)
    filter_ = _SocketFilter(len(program) // 8, program)
    _check(_libc.prctl(22, 2, ctypes.byref(filter_), 0, 0), "seccomp")


def _run(source: str) -> dict[str, Any]:
    """What became of the program. Only one that came to its end has passed: leaving early is no way to pass."""
    names: dict[str, Any] = {"__name__": "__main__", "__builtins__": __builtins__}
    try:
        exec(compile(source, "<program>", "exec"), names)  # noqa: S102 - what this process is for
    except SystemExit as error:
        return {"passed": False, "reason": f"left with exit code {error.code}"}
    except BaseException as error:  # noqa: BLE001 - whatever it raises is its verdict
        line, trace = "", error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_code.co_filename == "<program>":
                line = f" (line {trace.tb_lineno})"
            trace = trace.tb_next
        return {"passed": False, "reason": f"{type(error).__name__}: {error}"[:300].rstrip(": ") + line}
    return {"passed": True, "reason": ""}


def main() -> None:
    memory, seconds, file_bytes, verdict = (int(argument) for argument in sys.argv[1:5])
    source = sys.stdin.buffer.read().decode("utf-8", "replace")
    machine = os.uname().machine
    try:
        _limit(memory, seconds, file_bytes)
        _restrict_files()
        _restrict_calls(machine)
    except OSError as error:
        os.write(verdict, json.dumps({"setup": str(error)}).encode())
        os._exit(1)
    sys.argv = ["program"]
    result = _run(source)
    with contextlib.suppress(OSError, ValueError):  # it closed it
        sys.stdout.flush()
    os.write(verdict, json.dumps(result).encode())
    os._exit(0)


if __name__ == "__main__":
    main()
