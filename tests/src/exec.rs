//! Runs the machine's tools and turns their failure into an error that says what was run.

use std::ffi::OsStr;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a command to its end and returns its output; a failure carries the command line and what it said.
pub fn run(command: &mut Command) -> Result<Output> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {command:?}"))?;
    checked(command, output)
}

/// Runs a command with `input` on its standard input.
pub fn run_with_input(command: &mut Command, input: &str) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    // Dropping the pipe ends the input. The scripts fed here are read whole before anything is written back.
    let mut stdin = child.stdin.take().context("the child's standard input is piped")?;
    let written = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = checked(command, child.wait_with_output().context("waiting for the child")?)?;
    written.with_context(|| format!("feeding {command:?}"))?;
    Ok(output)
}

/// Runs a command and returns its standard output as text.
pub fn stdout(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&run(command)?.stdout).into_owned())
}

/// A command with its arguments.
pub fn command<S: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

fn checked(command: &Command, output: Output) -> Result<Output> {
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    bail!("{command:?} ended with {}: {}", output.status, said.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_was_run_and_what_it_said() {
        let error =
            run(&mut command("sh", ["-c", "echo broken pipework >&2; exit 3"])).expect_err("it exits 3");
        let text = error.to_string();
        assert!(text.contains("broken pipework") && text.contains("exit status: 3"), "{text}");
        let error = run(&mut command("/nonexistent/tool", [""; 0])).expect_err("no such tool");
        assert!(error.to_string().contains("/nonexistent/tool"), "{error}");
    }

    #[test]
    fn input_reaches_the_command() {
        let output = run_with_input(&mut command("cat", [""; 0]), "through").expect("cat runs");
        assert_eq!(output.stdout, b"through");
    }
}
