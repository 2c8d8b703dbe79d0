//! The program on a terminal, as a person sees it.

use std::process::{Command, Stdio};

use super::guests::servers;
use super::program::{Processes, WAFT};

/// Python's own pseudo terminal, which ends with the program. What that shows goes to standard output. When
/// it asks what is waited for, a line of the shell is run, and yes is said.
const PTY: &str = "
import os, pty, subprocess, sys
asked, meanwhile = sys.argv[1].encode(), sys.argv[2]
pid, fd = pty.fork()
if pid == 0: os.execv(sys.argv[3], sys.argv[3:])
shown = b''
while True:
    try: read = os.read(fd, 65536)
    except OSError: break
    if not read: break
    shown += read
    if asked and asked in shown:
        subprocess.run(meanwhile, shell=True, check=True)
        os.write(fd, b'y\\n')
        asked = b''
sys.stdout.buffer.write(shown)
sys.stdout.flush()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";

/// What a person at the terminal does: when this is asked, runs that line of the shell, and says yes.
/// Nothing by itself.
#[derive(Clone, Copy, Default)]
pub(crate) struct Person<'a> {
    pub(crate) asked: &'a str,
    pub(crate) meanwhile: &'a str,
}

/// Runs the program on a terminal, and returns all that it shows there.
pub(crate) fn on_a_terminal(
    processes: &Processes,
    words: &[&str],
    environment: &[(String, String)],
    person: Person<'_>,
) -> String {
    let mut command = Command::new(servers().unwrap().join("python/bin/python"));
    command
        .args(["-c", PTY, person.asked, person.meanwhile, WAFT])
        .args(words)
        .stdin(Stdio::null());
    for (name, value) in processes.waft([]).get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .env_remove("CI")
        .envs(environment.iter().cloned());
    let shown = command.output().unwrap();
    String::from_utf8_lossy(&shown.stdout).into_owned()
}
