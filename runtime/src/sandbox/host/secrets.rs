//! `waft:flow/secrets`: values on the agent's side, for tasks that asked and may have them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::log::{Log, cleaned};
use crate::sandbox::bindings::waft::flow::secrets;
use crate::sandbox::grant::Secrets;
use crate::sandbox::net::Denials;

/// Bytes of a name that are repeated in a message.
const NAME_BYTES_MAX: usize = 128;

/// What one attempt may read.
pub(crate) struct Vault {
    pub(crate) granted: BTreeSet<String>,
    pub(crate) secrets: Secrets,
    pub(crate) denials: Arc<Denials>,
    pub(crate) log: Log,
    /// What was read already: a value is fetched once an attempt, however often it is asked for.
    pub(crate) read: HashMap<String, String>,
}

impl secrets::Host for Vault {
    async fn get(&mut self, name: String) -> wasmtime::Result<Result<String, secrets::Error>> {
        if !self.granted.contains(&name) {
            return Ok(Err(secrets::Error::Denied(self.deny(&name))));
        }
        if let Some(value) = self.read.get(&name) {
            return Ok(Ok(value.clone()));
        }
        let (secrets, asked) = (self.secrets.clone(), name.clone());
        // It may run a command or read a file.
        let value = tokio::task::spawn_blocking(move || secrets.read(&asked)).await?;
        let Some(value) = value else {
            let shown = cleaned(&name, NAME_BYTES_MAX);
            return Ok(Err(secrets::Error::Unknown(format!(
                "this agent has no secret `{shown}`; set it there: waft secret set {shown}"
            ))));
        };
        self.log.hide(&value);
        self.read.insert(name, value.clone());
        Ok(Ok(value))
    }
}

impl Vault {
    fn deny(&self, name: &str) -> String {
        let name = cleaned(name, NAME_BYTES_MAX);
        let denial = format!(
            "reading the secret `{name}` was not granted; ask for it in the task, #[task(secrets = [\"{name}\"])], and allow it: --allow-secret {name}"
        );
        self.denials.record(denial.clone());
        denial
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::log::tests::heard;
    use super::*;
    use crate::model::limit::Limits;
    use crate::model::run::Level;

    #[tokio::test]
    async fn a_secret_is_read_once_if_granted_and_hidden_from_then_on() {
        let reads = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&reads);
        let names: BTreeSet<_> = ["token".to_owned(), "gone".to_owned()].into();
        let (log, mut lines) = heard(&Limits::DEFAULT);
        let mut vault = Vault {
            granted: names.clone(),
            secrets: Secrets::new(names, move |name| {
                counted.fetch_add(1, Ordering::SeqCst);
                (name == "token").then(|| "hunter22".to_owned())
            }),
            denials: Arc::default(),
            log: log.clone(),
            read: HashMap::new(),
        };
        for _ in 0..2 {
            let value = secrets::Host::get(&mut vault, "token".to_owned());
            assert_eq!(value.await.unwrap().unwrap(), "hunter22");
        }
        assert_eq!(reads.load(Ordering::SeqCst), 1);
        log.add(Level::Info, "got hunter22");
        assert_eq!(lines(), ["Info got [secret]"]);

        let gone = secrets::Host::get(&mut vault, "gone".to_owned())
            .await
            .unwrap();
        assert!(matches!(gone, Err(secrets::Error::Unknown(_))));
        let other = secrets::Host::get(&mut vault, "other\n".to_owned())
            .await
            .unwrap();
        assert!(matches!(other, Err(secrets::Error::Denied(_))));
        assert_eq!(
            vault.denials.take(),
            [
                "reading the secret `other\\n` was not granted; ask for it in the task, #[task(secrets = [\"other\\n\"])], and allow it: --allow-secret other\\n"
            ]
        );
    }
}
