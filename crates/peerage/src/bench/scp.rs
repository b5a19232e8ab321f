//! A file of random bytes copied by scp, to a server of the bench's own, plainly and through a tunnel, as in the thesis.

use std::{
    fs::{self, File},
    io::Write as _,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use rand_core::Rng as _;

use super::{
    How,
    network::Network,
    other::{Other, find},
    report::{Case, Run, median},
    ssh, thesis,
    tunnel::DEVICE_MAC,
};

/// How many bytes are drawn at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Copies a file plainly and through a tunnel, in turns; the reference is what the thesis measured through its tunnel.
pub(super) fn copied(how: &How, reference: f64) -> Result<Case> {
    let program = find("scp", None)?;
    let mut server = Other::new()?;
    let at = server.at;
    ssh::serve(&mut server, at)?;
    let bytes = if how.is_instant() { CHUNK_BYTES as u64 } else { thesis::FILE_BYTES };
    let file = server.folder().join("random");
    fill(&file, bytes)?;

    let network = Network::start()?;
    let (site, user) = (network.node("site", Some(DEVICE_MAC))?, network.node("user", None)?);
    network.register("files", DEVICE_MAC, &site, at)?;
    let tunnel = network.connect(&user, "files")?;
    network.settle(&user, &tunnel, |kind| kind == "direct")?;

    let copy = |at: SocketAddr| -> Result<f64> {
        let to = server.folder().join("copy");
        let mut scp = Command::new(&program);
        ssh::as_user(scp.args(["-q", "-P", &at.port().to_string()]), &server);
        scp.arg(&file).arg(format!("127.0.0.1:{}", to.display())).stdin(Stdio::null());
        let began_at = Instant::now();
        let status = scp.status().context("scp cannot be started")?;
        let took = began_at.elapsed();
        ensure!(status.success(), "scp has failed");
        ensure!(fs::metadata(&to)?.len() == bytes, "scp has copied something else");
        fs::remove_file(to)?;
        Ok(bytes as f64 / 1e6 / took.as_secs_f64())
    };
    let (mut runs, mut plainly, mut parts) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..how.runs() {
        let (plain, own) = (copy(at)?, copy(tunnel.at)?);
        runs.push(Run::new(own, reference));
        plainly.push(plain);
        parts.push(own / plain);
    }
    let case = Case::new("MB/s of 1 GiB of random bytes by scp through a tunnel", runs);
    Ok(case.with("plainly_mb_s", median(plainly)).with("part_of_the_plain_copy", median(parts)))
}

/// Writes a file of so many random bytes.
fn fill(path: &Path, bytes: u64) -> Result<()> {
    let (mut file, mut chunk) = (File::create(path)?, vec![0; CHUNK_BYTES]);
    let mut rng = super::crowd::rng()?;
    let mut left = bytes;
    while left > 0 {
        rng.fill_bytes(&mut chunk);
        let size = usize::try_from(left).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        file.write_all(chunk.get(..size).unwrap_or_default())?;
        left -= size as u64;
    }
    Ok(())
}
