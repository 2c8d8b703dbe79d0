//! A property list of launchd. Not tried on macOS yet; the text is checked by a parser.

use std::path::PathBuf;

use super::super::failure::Done;
use super::{Service, own_folder, plain, shell, text_of, xml};

/// Makes the list: where it lies, its text, and what to do then.
pub(super) fn list(service: &Service) -> Done<(PathBuf, String, Vec<String>)> {
    let label = service.title.replacen("waft-agent", "waft.agent", 1);
    let folder = match service.run_as {
        Some(_) => PathBuf::from("/Library/LaunchDaemons"),
        None => own_folder("Library/LaunchAgents")?,
    };
    let file = folder.join(format!("{label}.plist"));
    let domain = match service.run_as {
        Some(_) => "system",
        None => "gui/$(id -u)",
    };
    let shown = shell(text_of(&file)?);
    let commands = vec![format!("launchctl bootstrap {domain} {shown}")];
    Ok((file, text(service, &label)?, commands))
}

fn text(service: &Service, label: &str) -> Done<String> {
    let home = text_of(&service.home)?;
    let log = format!("{home}/agent.log");
    let mut text = String::from(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \
         \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n\
         <plist version=\"1.0\">\n<dict>\n",
    );
    let mut entry = |key: &str, value: String| {
        text.push_str(&format!("    <key>{key}</key>\n    {value}\n"));
    };
    let string = |text: &str| format!("<string>{}</string>", xml(text));
    entry("Label", string(label));
    let mut words = vec![text_of(&service.program)?];
    for argument in &service.arguments {
        words.push(plain(argument)?);
    }
    let words: Vec<_> = words.into_iter().map(string).collect();
    let words = words.join("\n        ");
    entry(
        "ProgramArguments",
        format!("<array>\n        {words}\n    </array>"),
    );
    let variable = format!("<key>WAFT_HOME</key>\n        {}", string(home));
    entry(
        "EnvironmentVariables",
        format!("<dict>\n        {variable}\n    </dict>"),
    );
    if let Some(user) = &service.run_as {
        entry("UserName", string(user));
    }
    entry("RunAtLoad", "<true/>".to_owned());
    // One that was drained has ended well, and stays down.
    entry(
        "KeepAlive",
        "<dict>\n        <key>SuccessfulExit</key>\n        <false/>\n    </dict>".to_owned(),
    );
    entry(
        "ExitTimeOut",
        format!("<integer>{}</integer>", service.stop_seconds),
    );
    entry("ThrottleInterval", "<integer>10</integer>".to_owned());
    entry("Umask", "<integer>63</integer>".to_owned());
    entry("StandardOutPath", string(&log));
    entry("StandardErrorPath", string(&log));
    text.push_str("</dict>\n</plist>\n");
    Ok(text)
}
