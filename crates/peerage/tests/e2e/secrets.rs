//! What a computer that somebody else lends can know: the whole memory and disk of a running super-node, searched.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::super_nodes::{admit, becomes, up};
use crate::support::{Party, Running, Town, connect, echo, eventually};

/// A device of which no other name, service or address has a part.
const NAME: &str = "zebra-in-accounting";
const SERVICE: &str = "confidential-queue";
const MAC: [u8; 6] = [0x02, 0x9f, 0x5e, 0xa7, 0xbb, 0x4c];

/// What goes through a tunnel.
const LETTER: &[u8] = b"nobody but the two of us reads this letter";

/// Whole regions are read, except for what is larger than anything that a program on its first minute fills.
const MAX_REGION: u64 = 256 << 20;

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// Reads everything that a process may write to.
fn memory(process: &Running) -> Vec<Vec<u8>> {
    let place = Path::new("/proc").join(process.id().to_string());
    let maps = std::fs::read_to_string(place.join("maps")).unwrap();
    let mem = File::open(place.join("mem")).unwrap();
    let region = |line: &str| {
        let (range, rest) = line.split_once(' ')?;
        let (from, to) = range.split_once('-')?;
        let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
        let mut bytes = vec![0; usize::try_from(to - from).ok()?];
        let is_read = rest.starts_with("rw") && to - from <= MAX_REGION;
        // What was unmapped meanwhile holds nothing any more.
        (is_read && mem.read_exact_at(&mut bytes, from).is_ok()).then_some(bytes)
    };
    maps.lines().filter_map(region).collect()
}

fn disk(party: &Party) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(party.data()).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_file()).map(|path| std::fs::read(path).unwrap()).collect()
}

fn shows(places: &[Vec<u8>], what: &[u8]) -> bool {
    places.iter().any(|bytes| contains(bytes, what))
}

/// Rules 2.10 and 2.11, and the first table of THREATS, for a real process that answers look-ups about another organisation.
#[tokio::test]
async fn the_memory_and_disk_of_a_foreign_super_node_show_no_device_and_no_content() {
    let town = Town::build().await;
    let shed = admit(&town.operator, "shed").await;
    let shed_up = up(&shed).await;
    shed.call(&["super", "on"]).await;
    becomes(&shed, "serving").await;
    let text = MAC.map(|byte| format!("{byte:02x}")).join(":");
    let office = town.operator.node("office").await["id"].as_str().unwrap().to_owned();
    let service = format!("{SERVICE}=39417");
    let device = ["device", "add", "--domain", "acme", "--name", NAME, "--mac", &text, "--via", &office];
    town.operator.party.call(&[&device[..], &["--service", &service]].concat()).await;
    let listed = async || {
        let devices = town.user.call(&["devices", "--refresh"]).await;
        devices.as_array().unwrap().iter().any(|device| device["name"] == NAME).then_some(())
    };
    eventually("the user's node knows the device", listed).await;
    let tunnel = connect(&town.user, "raw").await;
    assert_eq!(echo(tunnel.address("local"), LETTER).await.unwrap(), LETTER);

    // The search finds what a super-node does know: who its members are.
    let digits = &office[office.len() - 64..];
    let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    let member: Vec<u8> = pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
    eventually("the super-node holds what it should", async || {
        (shows(&memory(&shed_up), &member) && shows(&disk(&shed), &member)).then_some(())
    })
    .await;
    let (memory, disk) = (memory(&shed_up), disk(&shed));
    let secrets = [NAME.as_bytes(), SERVICE.as_bytes(), &MAC, text.as_bytes(), LETTER];
    for secret in secrets {
        let what = secret.escape_ascii();
        assert!(!shows(&memory, secret), "{what} in memory");
        assert!(!shows(&disk, secret), "{what} on disk");
    }
    // And it would find these: the user's node knows them.
    let user = self::memory(town.user_up.as_ref().unwrap());
    assert!(shows(&user, NAME.as_bytes()) && shows(&user, SERVICE.as_bytes()) && shows(&user, &MAC));
}
