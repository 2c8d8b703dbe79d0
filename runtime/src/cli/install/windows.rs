//! The configuration of WinSW, which makes a Windows service of a program.
//!
//! A service of `sc.exe` has to answer the service control manager, which `waft` does not; WinSW does
//! it in its place, and ends it with Ctrl-C. Not tried on Windows yet; the text is checked by a parser.

use std::path::PathBuf;

use super::super::failure::{Done, Failure};
use super::{Service, plain, text_of, xml};

/// Makes the configuration: where it lies, its text, and what to do then.
pub(super) fn configuration(service: &Service) -> Done<(PathBuf, String, Vec<String>)> {
    let title = &service.title;
    let file = service.home.join(format!("{title}.xml"));
    let commands = vec![
        format!("put WinSW (github.com/winsw/winsw) beside it as `{title}.exe`"),
        format!("{title}.exe install"),
        format!("{title}.exe start"),
    ];
    Ok((file, text(service)?, commands))
}

fn text(service: &Service) -> Done<String> {
    let program = unexpanded(text_of(&service.program)?)?;
    let home = unexpanded(text_of(&service.home)?)?;
    let mut arguments = Vec::new();
    for argument in &service.arguments {
        arguments.push(quoted(unexpanded(plain(argument)?)?));
    }
    let arguments = xml(&arguments.join(" "));
    // An id has letters and digits only.
    let id: String = (service.title.chars())
        .filter(char::is_ascii_alphanumeric)
        .collect();
    let (title, program, seconds) = (xml(&service.title), xml(program), service.stop_seconds);
    let home = xml(home);
    Ok(format!(
        r#"<service>
  <id>{id}</id>
  <name>{title}</name>
  <description>Claims runs of waft and executes them on this machine.</description>
  <executable>{program}</executable>
  <arguments>{arguments}</arguments>
  <env name="WAFT_HOME" value="{home}"/>
  <startmode>Automatic</startmode>
  <stoptimeout>{seconds} sec</stoptimeout>
  <onfailure action="restart" delay="10 sec"/>
  <logpath>{home}</logpath>
  <log mode="roll"></log>
  <serviceaccount>
    <username>NT AUTHORITY\LocalService</username>
  </serviceaccount>
</service>
"#
    ))
}

/// Refuses what WinSW would take for a variable; it knows no way to write the sign itself.
fn unexpanded(text: &str) -> Done<&str> {
    match text.contains('%') {
        false => Ok(text),
        true => Err(Failure::could(format!(
            "`{text}` has a `%`, which WinSW takes for a variable"
        ))
        .or_hint("set it in config.toml of the home instead")),
    }
}

/// Writes one argument of a command line, as a program of Windows takes it apart.
fn quoted(text: &str) -> String {
    if !text.is_empty() && !text.contains([' ', '\t', '"']) {
        return text.to_owned();
    }
    let mut out = String::from("\"");
    let mut slashes = 0;
    for letter in text.chars() {
        match letter {
            '\\' => slashes += 1,
            '"' => {
                // Slashes before a quote are doubled, and the quote has one of its own.
                out.push_str(&"\\".repeat(slashes * 2 + 1));
                out.push('"');
                slashes = 0;
            }
            letter => {
                out.push_str(&"\\".repeat(slashes));
                out.push(letter);
                slashes = 0;
            }
        }
    }
    out.push_str(&"\\".repeat(slashes * 2));
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_is_one_for_a_program_of_windows() {
        assert_eq!(quoted("plain\\path"), "plain\\path");
        assert_eq!(quoted("a b"), r#""a b""#);
        assert_eq!(quoted(r"a b\"), r#""a b\\""#);
        assert_eq!(quoted(r#"a\"b"#), r#""a\\\"b""#);
        assert_eq!(quoted(""), "\"\"");
    }
}
