//! The program as its users and their scripts see it: exit codes, what it says, and where it says it.

#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

use serde_json::Value;
use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

mod usage {
    use super::*;

    #[test]
    fn wrong_use_is_exit_code_2_and_names_what_is_wrong() {
        let data = tempfile::tempdir().unwrap();
        for (args, named) in [
            (&["frobnicate"][..], "frobnicate"),
            (&[], "Usage"),
            (&["join"], "TOKEN"),
            (&["join", "token", "--token-file", "file"], "cannot be used with"),
            (&["connect", "192.168.1.2:631"], "DEVICE:SERVICE"),
            (&["connect", "hp", "--listen", "localhost:1"], "--listen"),
            (&["connect", "hp", "--expose"], "--listen"),
            (&["up", "--role", "operator"], "operator"),
            (&["operator", "init"], "--listen"),
            (&["operator", "init", "--listen", "127.0.0.1:0", "--key", "k"], "--certificate"),
            (&["operator", "run", "--admin-listen", "0.0.0.0:0"], "loopback"),
            (&["domain", "add", "Acme Ltd"], "a-z"),
            (&["token", "add", "--domain", "acme", "--expires", "7"], "7d"),
            (&["token", "add", "--domain", "acme", "--uses", "0"], "--uses"),
            (&["token", "list"], "--domain"),
            (
                &[
                    "device",
                    "add",
                    "--domain",
                    "acme",
                    "--name",
                    "hp",
                    "--mac",
                    "aa:bb",
                    "--service",
                    "ipp=631",
                ],
                "six pairs",
            ),
            (
                &["device", "add", "--domain", "acme", "--name", "hp", "--mac", "02:00:00:00:00:01"],
                "--service",
            ),
            (&["node", "revoke", "n", "--domain", "acme", "--reason", "dislike"], "dislike"),
            (&["--log", "in fo=[", "status"], "log filter"),
            (&["--log-format", "xml", "status"], "xml"),
            (&["--config", "/nowhere/peerage.toml", "status"], "/nowhere/peerage.toml"),
        ] {
            let output = peerage(data.path(), args);
            assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
            assert!(stderr(&output).contains(named), "{args:?}: {}", stderr(&output));
            assert!(stdout(&output).is_empty(), "{args:?}");
        }
    }

    #[test]
    fn help_and_version_go_to_standard_output() {
        let data = tempfile::tempdir().unwrap();
        for args in [&["--help"][..], &["connect", "-h"], &["device", "add", "--help"]] {
            let output = peerage(data.path(), args);
            assert_eq!(output.status.code(), Some(0));
            assert!(stdout(&output).contains("Usage: peerage"), "{args:?}");
        }
        assert!(stdout(&peerage(data.path(), &["--version"])).starts_with("peerage "));
    }

    #[test]
    fn without_a_home_the_data_directory_must_be_named() {
        let output = command().arg("status").output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("PEERAGE_DATA"), "{}", stderr(&output));
    }
}

mod configuration {
    use super::*;

    #[test]
    fn an_unknown_key_is_an_error_that_names_its_line() {
        let data = tempfile::tempdir().unwrap();
        fs::write(data.path().join("peerage.toml"), "log = \"info\"\n\n[node]\nlistn = \"127.0.0.1:1\"\n")
            .unwrap();
        let output = peerage(data.path(), &["status"]);
        assert_eq!(output.status.code(), Some(2));
        for part in ["peerage.toml", "line 4", "`listn`", "`listen`"] {
            assert!(stderr(&output).contains(part), "{part}: {}", stderr(&output));
        }
    }

    #[test]
    fn a_flag_goes_before_the_environment_and_that_before_the_file() {
        // A filter that cannot be read shows which of the three was taken.
        let data = tempfile::tempdir().unwrap();
        fs::write(data.path().join("peerage.toml"), "log = \"[file\"\n").unwrap();
        let taken = |flag: Option<&str>, environment: Option<&str>| {
            let mut command = command();
            command.arg("--data").arg(data.path()).arg("status").args(flag.map(|f| format!("--log={f}")));
            command.envs(environment.map(|value| ("PEERAGE_LOG", value)));
            stderr(&command.output().unwrap())
        };
        assert!(taken(None, None).contains("[file"));
        assert!(taken(None, Some("[environment")).contains("[environment"));
        assert!(taken(Some("[flag"), Some("[environment")).contains("[flag"));
        assert!(taken(Some("info"), Some("[environment")).contains("no node is running"));
    }

    #[test]
    fn nodes_and_operators_have_directories_of_their_own() {
        let home = tempfile::tempdir().unwrap();
        let said = |args: &[&str], variable: Option<(&str, &str)>| {
            let output = command().args(args).env("HOME", home.path()).envs(variable).output().unwrap();
            assert_eq!(output.status.code(), Some(1));
            stderr(&output)
        };
        assert!(said(&["status"], None).contains(".local/state/peerage/node"));
        assert!(said(&["domain", "list"], None).contains(".local/state/peerage/operator"));
        assert!(said(&["status"], Some(("XDG_STATE_HOME", "/xdg"))).contains("/xdg/peerage/node"));
        assert!(said(&["status"], Some(("PEERAGE_DATA", "/n"))).contains("/n\n"));
        assert!(said(&["domain", "list"], Some(("PEERAGE_DATA", "/n"))).contains("peerage/operator"));
        assert!(said(&["domain", "list"], Some(("PEERAGE_OPERATOR_DATA", "/o"))).contains("/o\n"));
    }
}

mod failures {
    use super::*;

    #[test]
    fn without_a_running_node_every_question_says_so_and_what_to_do() {
        let data = tempfile::tempdir().unwrap();
        for args in
            [&["status"][..], &["devices"], &["devices", "--refresh"], &["connect", "hp:ipp"], &["down"]]
        {
            let output = peerage(data.path(), args);
            assert_eq!(output.status.code(), Some(1), "{args:?}");
            let said = stderr(&output);
            assert!(said.starts_with("error: no node is running with the data directory "), "{said}");
            assert!(said.contains("\n  Start it with `peerage up`"), "{said}");
            assert!(stdout(&output).is_empty(), "{args:?}");
        }
    }

    #[test]
    fn without_a_running_operator_every_order_says_so_and_what_to_do() {
        let data = tempfile::tempdir().unwrap();
        for args in [
            &["domain", "add", "acme"][..],
            &["token", "add", "--domain", "acme"],
            &["device", "remove", "hp", "--domain", "acme"],
            &["node", "list", "--domain", "acme"],
        ] {
            let output = peerage(data.path(), args);
            assert_eq!(output.status.code(), Some(1), "{args:?}");
            assert!(
                stderr(&output).contains("\n  Start it with `peerage operator run`"),
                "{}",
                stderr(&output)
            );
        }
    }

    #[test]
    fn with_json_a_failure_is_an_object_as_well() {
        let data = tempfile::tempdir().unwrap();
        let output = peerage(data.path(), &["status", "--json"]);
        assert_eq!(output.status.code(), Some(1));
        let error: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert!(error["error"]["what"].as_str().unwrap().starts_with("no node is running"), "{error}");
        assert!(stderr(&output).starts_with("error: no node is running"));
    }

    #[test]
    fn a_token_file_that_cannot_be_used_is_named() {
        let data = tempfile::tempdir().unwrap();
        let empty = data.path().join("empty");
        fs::write(&empty, "\n").unwrap();
        let output = peerage(data.path(), &["join", "--token-file", empty.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("there is no join token in"), "{}", stderr(&output));
        let output = peerage(data.path(), &["join", "--token-file", "/nowhere/token"]);
        assert!(stderr(&output).contains("/nowhere/token"), "{}", stderr(&output));
    }
}

mod manual {
    use super::*;

    #[test]
    fn completions_exist_for_every_shell() {
        for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
            let output = command().args(["completions", shell]).output().unwrap();
            assert_eq!(output.status.code(), Some(0));
            assert!(stdout(&output).contains("connect"), "{shell}");
        }
    }

    #[test]
    fn every_command_has_a_page_in_the_manual() {
        assert!(stdout(&command().arg("man").output().unwrap()).starts_with(".ie"));
        let dir = tempfile::tempdir().unwrap();
        let output = command().args(["man", "--dir"]).arg(dir.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        for page in ["peerage.1", "peerage-connect.1", "peerage-device-add.1"] {
            assert!(dir.path().join(page).exists(), "{page}");
        }
    }
}

/// Runs the program with a data directory and nothing of this process's environment.
fn peerage(data: &Path, args: &[&str]) -> Output {
    command().args(args).env("PEERAGE_DATA", data).env("PEERAGE_OPERATOR_DATA", data).output().unwrap()
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_peerage"));
    command.env_clear();
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
