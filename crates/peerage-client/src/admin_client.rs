//! The client of the admin API.

use crate::{
    admin::{
        ADMIN_FILE, AddDevice, AddDomain, AddToken, AdminFile, Device, Domain, NewToken, Node,
        OperatorStatus, Push, Pushed, QuarantineSuperNode, RevokeDomain, RevokeNode, RevokeToken,
        RevokedToken, SegmentMap, SuperNode, Token,
    },
    error::Error,
    http::{self, Call, segment},
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    fs, io,
    path::{Path, PathBuf},
};
use tokio::net::TcpStream;

/// A client of the operator that runs with a data directory.
#[derive(Clone, Debug)]
pub struct AdminClient {
    data: PathBuf,
    host: String,
    file: AdminFile,
}

impl AdminClient {
    /// Makes a client of the operator that runs with this data directory: reads its admin file, does not connect yet.
    ///
    /// Fails if there is no such file, if others can read it, or if it names an address that is not on this computer.
    pub fn from_data_dir(data: impl Into<PathBuf>) -> Result<Self, Error> {
        let data = data.into();
        let file = read_admin_file(&data)?;
        Ok(Self { host: file.address.to_string(), data, file })
    }

    /// Asks how the operator is.
    pub async fn status(&self) -> Result<OperatorStatus, Error> {
        self.get("/v1/status".to_owned()).await
    }

    /// Lists the domains.
    pub async fn domains(&self) -> Result<Vec<Domain>, Error> {
        self.get("/v1/domains".to_owned()).await
    }

    /// Makes a domain.
    pub async fn add_domain(&self, domain: &AddDomain) -> Result<Domain, Error> {
        self.post("/v1/domains".to_owned(), domain).await
    }

    /// Shows one domain.
    pub async fn domain(&self, domain: &str) -> Result<Domain, Error> {
        self.get(in_domain(domain, "")).await
    }

    /// Excludes a whole domain for good.
    pub async fn revoke_domain(&self, domain: &str, request: &RevokeDomain) -> Result<Domain, Error> {
        self.post(in_domain(domain, "/revoke"), request).await
    }

    /// Lists the join tokens of a domain, ended ones included.
    pub async fn tokens(&self, domain: &str) -> Result<Vec<Token>, Error> {
        self.get(in_domain(domain, "/tokens")).await
    }

    /// Makes a join token.
    pub async fn add_token(&self, domain: &str, token: &AddToken) -> Result<NewToken, Error> {
        self.post(in_domain(domain, "/tokens"), token).await
    }

    /// Closes a join token, by its id.
    pub async fn revoke_token(
        &self,
        domain: &str,
        token: &str,
        request: &RevokeToken,
    ) -> Result<RevokedToken, Error> {
        self.post(in_domain(domain, &format!("/tokens/{}/revoke", segment(token))), request).await
    }

    /// Lists the devices of a domain.
    pub async fn devices(&self, domain: &str) -> Result<Vec<Device>, Error> {
        self.get(in_domain(domain, "/devices")).await
    }

    /// Registers a device.
    pub async fn add_device(&self, domain: &str, device: &AddDevice) -> Result<Device, Error> {
        self.post(in_domain(domain, "/devices"), device).await
    }

    /// Removes a device, by its name or id.
    pub async fn remove_device(&self, domain: &str, device: &str) -> Result<Device, Error> {
        let call =
            Call::new("DELETE", in_domain(domain, &format!("/devices/{}", segment(device))), &self.host);
        self.send(call).await
    }

    /// Sends device records to those who hold them now.
    pub async fn push(&self, domain: &str, push: &Push) -> Result<Pushed, Error> {
        self.post(in_domain(domain, "/push"), push).await
    }

    /// Lists the nodes of a domain.
    pub async fn nodes(&self, domain: &str) -> Result<Vec<Node>, Error> {
        self.get(in_domain(domain, "/nodes")).await
    }

    /// Shows one node.
    pub async fn node(&self, domain: &str, node: &str) -> Result<Node, Error> {
        self.get(in_domain(domain, &format!("/nodes/{}", segment(node)))).await
    }

    /// Lets a node in that waits for approval.
    pub async fn approve_node(&self, domain: &str, node: &str) -> Result<Node, Error> {
        let path = in_domain(domain, &format!("/nodes/{}/approve", segment(node)));
        self.send(Call::new("POST", path, &self.host)).await
    }

    /// Revokes a node.
    pub async fn revoke_node(&self, domain: &str, node: &str, request: &RevokeNode) -> Result<Node, Error> {
        self.post(in_domain(domain, &format!("/nodes/{}/revoke", segment(node))), request).await
    }

    /// Lists the super-nodes, and those that offer themselves, of all domains.
    pub async fn super_nodes(&self) -> Result<Vec<SuperNode>, Error> {
        self.get("/v1/super-nodes".to_owned()).await
    }

    /// Keeps a super-node away from everybody.
    pub async fn quarantine(&self, node: &str, request: &QuarantineSuperNode) -> Result<SuperNode, Error> {
        self.post(format!("/v1/super-nodes/{}/quarantine", segment(node)), request).await
    }

    /// Lets a super-node serve again that was kept away.
    pub async fn release(&self, node: &str) -> Result<SuperNode, Error> {
        let path = format!("/v1/super-nodes/{}/release", segment(node));
        self.send(Call::new("POST", path, &self.host)).await
    }

    /// Shows who holds which part of the table.
    pub async fn segments(&self) -> Result<SegmentMap, Error> {
        self.get("/v1/segments".to_owned()).await
    }

    async fn get<T: DeserializeOwned>(&self, path: String) -> Result<T, Error> {
        self.send(Call::new("GET", path, &self.host)).await
    }

    async fn post<T: DeserializeOwned>(&self, path: String, body: &impl Serialize) -> Result<T, Error> {
        self.send(Call::new("POST", path, &self.host).json(body)?).await
    }

    async fn send<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, Error> {
        let stream = TcpStream::connect(self.file.address).await.map_err(|error| {
            // The file outlives an operator that was killed.
            if error.kind() == io::ErrorKind::ConnectionRefused {
                Error::OperatorNotRunning { data: self.data.clone() }
            } else {
                Error::Io(error)
            }
        })?;
        http::call(stream, call.bearer(&self.file.token)).await
    }
}

fn in_domain(domain: &str, rest: &str) -> String {
    format!("/v1/domains/{}{rest}", segment(domain))
}

fn read_admin_file(data: &Path) -> Result<AdminFile, Error> {
    let path = data.join(ADMIN_FILE);
    let mode = mode_of(&path).map_err(|source| unreadable(data, &path, source))?;
    if mode & 0o077 != 0 {
        return Err(Error::AdminFileExposed { path, mode });
    }
    let content = fs::read(&path).map_err(|source| unreadable(data, &path, source))?;
    let file: AdminFile =
        serde_json::from_slice(&content).map_err(|source| Error::AdminFileMalformed { path, source })?;
    if !file.address.ip().is_loopback() {
        return Err(Error::AdminNotLoopback { address: file.address });
    }
    Ok(file)
}

fn unreadable(data: &Path, path: &Path, source: io::Error) -> Error {
    if source.kind() == io::ErrorKind::NotFound {
        Error::OperatorNotRunning { data: data.to_owned() }
    } else {
        Error::AdminFileUnreadable { path: path.to_owned(), source }
    }
}

#[cfg(unix)]
fn mode_of(path: &Path) -> io::Result<u32> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(fs::metadata(path)?.permissions().mode() & 0o777)
}

#[cfg(not(unix))]
fn mode_of(path: &Path) -> io::Result<u32> {
    fs::metadata(path).map(|_exists| 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn data_with(content: &str, mode: u32) -> tempfile::TempDir {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join(ADMIN_FILE);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        data
    }

    #[test]
    fn a_missing_admin_file_means_that_no_operator_runs() {
        let data = tempfile::tempdir().unwrap();
        assert!(matches!(AdminClient::from_data_dir(data.path()), Err(Error::OperatorNotRunning { .. })));
    }

    #[test]
    fn an_admin_file_that_others_can_read_is_refused() {
        let data = data_with(r#"{"address":"127.0.0.1:1","token":"t"}"#, 0o640);
        assert!(matches!(
            AdminClient::from_data_dir(data.path()),
            Err(Error::AdminFileExposed { mode: 0o640, .. })
        ));
    }

    #[test]
    fn the_token_is_never_sent_beyond_this_computer() {
        let data = data_with(r#"{"address":"192.0.2.1:80","token":"t"}"#, 0o600);
        assert!(matches!(AdminClient::from_data_dir(data.path()), Err(Error::AdminNotLoopback { .. })));
    }

    #[test]
    fn a_damaged_admin_file_is_named() {
        let data = data_with(r#"{"address":"#, 0o600);
        let error = AdminClient::from_data_dir(data.path()).unwrap_err();
        assert!(error.to_string().contains(ADMIN_FILE), "{error}");
    }

    #[test]
    fn the_token_does_not_show_in_debug_output() {
        let data = data_with(r#"{"address":"127.0.0.1:1","token":"secret-token"}"#, 0o600);
        let client = AdminClient::from_data_dir(data.path()).unwrap();
        assert!(!format!("{client:?}").contains("secret-token"));
    }

    #[tokio::test]
    async fn an_operator_that_was_killed_is_reported_as_not_running() {
        // A port that was free a moment ago and on which nothing listens.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let data = data_with(&format!(r#"{{"address":"{free}","token":"t"}}"#), 0o600);
        let client = AdminClient::from_data_dir(data.path()).unwrap();
        assert!(matches!(client.status().await, Err(Error::OperatorNotRunning { .. })));
    }
}
