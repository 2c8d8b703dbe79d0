//! A unit of systemd.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::super::failure::{Done, Failure};
use super::{Service, own_folder, plain, shell, text_of};
use crate::config::variable;

/// Folders of which a unit may have its own.
const TEMPORARY: [&str; 2] = ["/tmp", "/var/tmp"];

/// Makes the unit: where it lies, its text, and what to do then.
pub(super) fn unit(service: &Service) -> Done<(PathBuf, String, Vec<String>)> {
    let title = format!("{}.service", service.title);
    let folder = match (&service.run_as, variable("XDG_CONFIG_HOME")) {
        (Some(_), _) => PathBuf::from("/etc/systemd/system"),
        (None, Some(config)) if config.starts_with('/') => Path::new(&config).join("systemd/user"),
        (None, _) => own_folder(".config/systemd/user")?,
    };
    let shown = shell(text_of(&service.home)?);
    let commands = match &service.run_as {
        Some(user) => vec![
            format!("useradd --system --home-dir {shown} --shell /usr/sbin/nologin {user}"),
            format!("mkdir -p {shown} && chown -R {user}: {shown}"),
            "systemctl daemon-reload".to_owned(),
            format!("systemctl enable --now {title}"),
        ],
        None => vec![
            "systemctl --user daemon-reload".to_owned(),
            format!("systemctl --user enable --now {title}"),
            "loginctl enable-linger, so that it runs while you are away".to_owned(),
        ],
    };
    Ok((folder.join(&title), text(service)?, commands))
}

fn text(service: &Service) -> Done<String> {
    let mut unit = String::from("[Unit]\n");
    let mut line = |text: &str| {
        unit.push_str(text);
        unit.push('\n');
    };
    line(&match &service.name {
        Some(name) => format!("Description=Waft agent {name}"),
        None => "Description=Waft agent".to_owned(),
    });
    if service.run_as.is_some() {
        line("Wants=network-online.target");
        line("After=network-online.target");
    }
    line("# A server that is away at the start is asked until it is back.");
    line("StartLimitIntervalSec=0");
    line("");
    line("[Service]");
    line(&format!("ExecStart={}", command(service)?));
    let home = text_of(&service.home)?;
    line(&format!(
        "Environment={}",
        quoted(&format!("WAFT_HOME={home}"))?
    ));
    line("# What storages need of the environment, if there is such a file.");
    line(&format!(
        "EnvironmentFile=-{}",
        doubled(home, '%') + "/agent.env"
    ));
    if let Some(user) = &service.run_as {
        line(&format!("User={user}"));
    }
    line("Restart=on-failure");
    line("RestartSec=5s");
    line("# Wrong arguments do not mend themselves.");
    line("RestartPreventExitStatus=2");
    line("");
    line("# A stop lets it finish the runs that it has; children that compile are not told.");
    line("KillSignal=SIGTERM");
    line("KillMode=mixed");
    line(&format!("TimeoutStopSec={}s", service.stop_seconds));
    line("");
    line("# It writes its home, and what flows may write. Code is compiled here, so");
    line("# MemoryDenyWriteExecute= would end it.");
    if service.run_as.is_none() {
        line(
            "# Where users may make no namespaces, the lines with Protect and Private have to go.",
        );
    }
    line("NoNewPrivileges=yes");
    line("ProtectSystem=strict");
    let mut writes = String::new();
    for place in &service.writes {
        let place = quoted(text_of(place)?)?;
        write!(writes, " {place}").map_err(anyhow::Error::from)?;
    }
    line(&format!("ReadWritePaths={}", writes.trim_start()));
    let mut places = service.writes.iter().chain(&service.reads);
    if !places.any(|place| TEMPORARY.iter().any(|folder| place.starts_with(folder))) {
        line("PrivateTmp=yes");
    }
    line("ProtectKernelTunables=yes");
    line("ProtectControlGroups=yes");
    line("RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX");
    line("RestrictRealtime=yes");
    line("RestrictSUIDSGID=yes");
    line("LockPersonality=yes");
    if service.run_as.is_some() {
        line("CapabilityBoundingSet=");
    }
    line("");
    line("[Install]");
    line(match service.run_as {
        Some(_) => "WantedBy=multi-user.target",
        None => "WantedBy=default.target",
    });
    Ok(unit)
}

/// Writes the command line. Variables are replaced in arguments and not in the program.
fn command(service: &Service) -> Done<String> {
    let program = text_of(&service.program)?;
    if program.contains(['"', '\'', '\\']) {
        let what =
            format!("systemd starts no program with a quote or `\\` in its path: `{program}`");
        return Err(Failure::could(what).or_hint("put the program elsewhere"));
    }
    let mut line = quoted(program)?;
    for argument in &service.arguments {
        line.push(' ');
        line.push_str(&quoted(&doubled(argument, '$'))?);
    }
    Ok(line)
}

/// Writes one word of a line, in quotes only where it needs them.
fn quoted(text: &str) -> Done<String> {
    let text = doubled(plain(text)?, '%');
    let is_safe = |it: char| it.is_ascii_alphanumeric() || "-_./:=@%,+*$".contains(it);
    if !text.is_empty() && text.chars().all(is_safe) {
        return Ok(text);
    }
    let text = text.replace('\\', r"\\").replace('"', r#"\""#);
    Ok(format!("\"{text}\""))
}

fn doubled(text: &str, letter: char) -> String {
    text.replace(letter, &format!("{letter}{letter}"))
}
