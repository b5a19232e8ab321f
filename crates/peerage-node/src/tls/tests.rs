#![expect(clippy::unwrap_in_result, reason = "what a test cannot set up may fail it")]

use rustls::{Connection, ProtocolVersion};

use super::*;

#[test]
fn both_sides_learn_the_identity_of_the_other() {
    let (alice, bob) = (key(1), key(2));
    let (client, server, _) = connect(&alice, &bob, bob.public()).unwrap();
    assert_eq!(peer_identity(&client), Some(bob.public()));
    assert_eq!(peer_identity(&server), Some(alice.public()));
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
}

#[test]
fn a_server_with_another_key_is_refused_by_the_client() {
    let (alice, bob, mallory) = (key(1), key(2), key(3));
    let error = connect(&alice, &mallory, bob.public()).unwrap_err();
    assert_eq!(error, Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
}

#[test]
fn no_ticket_is_sent_and_no_handshake_is_ever_resumed() {
    let (alice, bob) = (key(1), key(2));
    for _again in 0..2 {
        let (client, server, sent_after) = connect(&alice, &bob, bob.public()).unwrap();
        // A ticket would be the only thing that a server sends after its handshake.
        assert_eq!(sent_after, 0);
        for end in [&client, &server] {
            assert_eq!(end.handshake_kind(), Some(rustls::HandshakeKind::Full));
        }
    }
    let tls = Tls::new(&alice).unwrap();
    assert!(!tls.server.ticketer.enabled());
    assert_eq!((tls.server.send_tls13_tickets, tls.server.max_early_data_size), (0, 0));
}

#[test]
fn another_protocol_is_refused_and_one_that_offers_none_proves_nobody() {
    let (alice, bob) = (key(1), key(2));
    let server = Tls::new(&bob).unwrap();
    let mut other = client_config(&alice, bob.public());
    other.alpn_protocols = vec![b"h2".to_vec()];
    let client = ClientConnection::new(Arc::new(other), unnamed()).unwrap();
    assert_eq!(
        run(client.into(), server.accept().unwrap().into()).unwrap_err(),
        Error::NoApplicationProtocol
    );

    let mut silent = client_config(&alice, bob.public());
    silent.alpn_protocols = Vec::new();
    let client = ClientConnection::new(Arc::new(silent), unnamed()).unwrap();
    let (_, server, _) = run(client.into(), server.accept().unwrap().into()).unwrap();
    assert_eq!(peer_identity(&server), None);
}

#[test]
fn a_client_without_a_key_is_refused() {
    let bob = key(2);
    let verifier = RawKeyVerifier { expected: Some(bob.public()), provider: provider() };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_TUNNEL.to_vec()];
    let client = ClientConnection::new(Arc::new(config), unnamed()).unwrap();
    assert!(run(client.into(), Tls::new(&bob).unwrap().accept().unwrap().into()).is_err());
}

mod a_prepared_handshake {
    use super::*;
    use peerage_wire::limits::{MAX_FLIGHT, MAX_HELLO};

    /// Rule 7.29: both flights fit into messages, and each side has proven the other's key before it sends or takes anything else.
    #[test]
    fn goes_on_over_a_connection_and_proves_both_keys() {
        let (alice, bob) = (key(1), key(2));
        let (mut client, hello) = Tls::new(&alice).unwrap().begin(bob.public()).unwrap();
        let (server, flight) = Tls::new(&bob).unwrap().prepare(alice.public(), &hello).unwrap();
        assert!(hello.len() <= MAX_HELLO, "{}", hello.len());
        assert!(flight.len() <= MAX_FLIGHT, "{}", flight.len());
        assert_eq!(peer_identity(&client), None);
        go_on(&mut client, bob.public(), &flight).unwrap();
        assert_eq!(peer_identity(&server), None);
        let (client, server, _) = run(client, server).unwrap();
        assert_eq!(peer_identity(&client), Some(bob.public()));
        assert_eq!(peer_identity(&server), Some(alice.public()));
        assert_eq!(server.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }

    #[test]
    fn is_refused_to_whoever_has_another_key_than_the_one_who_asked() {
        let (alice, bob, mallory) = (key(1), key(2), key(3));
        // Mallory has had Alice's request answered as her own, or Alice's name put before her hello.
        let (mut client, hello) = Tls::new(&mallory).unwrap().begin(bob.public()).unwrap();
        let (server, flight) = Tls::new(&bob).unwrap().prepare(alice.public(), &hello).unwrap();
        go_on(&mut client, bob.public(), &flight).unwrap();
        let refused = Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        assert_eq!(run(client, server).unwrap_err(), refused);
    }

    #[test]
    fn takes_no_flight_of_another_server_or_for_another_hello() {
        let (alice, bob, mallory) = (key(1), key(2), key(3));
        let user = Tls::new(&alice).unwrap();
        let (mut client, hello) = user.begin(bob.public()).unwrap();
        let (_, flight) = Tls::new(&mallory).unwrap().prepare(alice.public(), &hello).unwrap();
        assert!(go_on(&mut client, bob.public(), &flight).is_err());
        let (mut client, _) = user.begin(bob.public()).unwrap();
        let (_, flight) = Tls::new(&bob).unwrap().prepare(alice.public(), &hello).unwrap();
        assert!(go_on(&mut client, bob.public(), &flight).is_err());
    }

    #[test]
    fn needs_whole_flights() {
        let (alice, bob) = (key(1), key(2));
        let server = Tls::new(&bob).unwrap();
        let (mut client, hello) = Tls::new(&alice).unwrap().begin(bob.public()).unwrap();
        for part in [0, 1, 5, hello.len() - 1] {
            assert!(server.prepare(alice.public(), &hello[..part]).is_err(), "{part}");
        }
        assert!(server.prepare(alice.public(), &[7; 218]).is_err());
        let (_, flight) = server.prepare(alice.public(), &hello).unwrap();
        assert!(go_on(&mut client, bob.public(), &flight[..flight.len() - 1]).is_err());
    }
}

#[test]
fn only_the_usual_form_of_an_ed25519_key_is_an_identity() {
    let key = key(1).public();
    let info = public_key_to_spki(&alg_id::ED25519, key);
    assert_eq!(identity_of(&info), Some(key));
    assert_eq!(identity_of(&info[1..]), None);
    assert_eq!(identity_of(&public_key_to_spki(&alg_id::ECDSA_P256, key)), None);
    assert_eq!(identity_of(&[]), None);
}

fn key(seed: u8) -> IdentityKey {
    IdentityKey::from_seed(&[seed; 32])
}

fn client_config(own: &IdentityKey, expected: [u8; 32]) -> ClientConfig {
    let tls = Tls::new(own).unwrap();
    let verifier = RawKeyVerifier { expected: Some(expected), provider: provider() };
    let resolver = AlwaysResolvesClientRawPublicKeys::new(Arc::clone(&tls.key));
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(resolver))
}

fn connect(
    client: &IdentityKey,
    server: &IdentityKey,
    expected: [u8; 32],
) -> Result<(Connection, Connection, usize), Error> {
    let client = Tls::new(client).unwrap().connect(expected).unwrap();
    run(client.into(), Tls::new(server).unwrap().accept().unwrap().into())
}

/// Carries bytes between both ends until nothing more is said; returns how much the server said after its handshake.
fn run(mut client: Connection, mut server: Connection) -> Result<(Connection, Connection, usize), Error> {
    let mut after = 0;
    loop {
        let mut to_server = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut to_server).unwrap();
        }
        let mut to_client = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut to_client).unwrap();
        }
        if to_server.is_empty() && to_client.is_empty() {
            return Ok((client, server, after));
        }
        if !server.is_handshaking() {
            after += to_client.len();
        }
        feed(&mut server, &to_server)?;
        feed(&mut client, &to_client)?;
    }
}

fn feed(end: &mut Connection, mut bytes: &[u8]) -> Result<(), Error> {
    while !bytes.is_empty() {
        end.read_tls(&mut bytes).unwrap();
        end.process_new_packets()?;
    }
    Ok(())
}
