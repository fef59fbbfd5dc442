//! A stand-in for the resolvers of a host: it knows every name but those that begin with `no`.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::within;

/// How often it looks whether it is over.
const TICK: Duration = Duration::from_millis(20);

/// A resolver, by UDP and TCP.
#[derive(Debug)]
pub struct PublicDns {
    over: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<()>>,
}

impl PublicDns {
    /// The address that every name has.
    pub const V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 80);
    /// The other one.
    pub const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0x80);

    /// In this namespace, at this address of it.
    #[track_caller]
    pub fn start(namespace: &File, address: IpAddr) -> Self {
        let at = (address, 53);
        let (udp, tcp) = within(namespace, || {
            (UdpSocket::bind(at).expect("binding"), TcpListener::bind(at).expect("listening"))
        });
        udp.set_read_timeout(Some(TICK)).expect("a time-out");
        tcp.set_nonblocking(true).expect("not blocking");
        let over = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (ends, asks) =
            ((Arc::clone(&over), Arc::clone(&over)), (Arc::clone(&asked), Arc::clone(&asked)));
        let datagrams = thread::spawn(move || {
            let mut bytes = [0; 4096];
            while !ends.0.load(Ordering::Relaxed) {
                let Ok((length, from)) = udp.recv_from(&mut bytes) else { continue };
                let answer = answer(&bytes[..length], &asks.0, 512);
                let _ = udp.send_to(&answer.unwrap_or_default(), from);
            }
        });
        let connections = thread::spawn(move || {
            while !ends.1.load(Ordering::Relaxed) {
                match tcp.accept() {
                    Ok((mut stream, _)) => drop(converse(&mut stream, &asks.1)),
                    Err(_) => thread::sleep(TICK),
                }
            }
        });
        Self { over, asked, threads: vec![datagrams, connections] }
    }

    /// The names that it was asked for, in lower case, each as often as it was.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for PublicDns {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn converse(stream: &mut (impl Read + Write), asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut bytes)?;
    let answer = answer(&bytes, asked, usize::from(u16::MAX)).unwrap_or_default();
    stream.write_all(&(answer.len() as u16).to_be_bytes())?;
    stream.write_all(&answer)
}

/// The answer to a question, and to one that is longer than `limit` that it is to be asked otherwise.
fn answer(bytes: &[u8], asked: &Mutex<Vec<String>>, limit: usize) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*bytes.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(bytes.get(at..at + length)?).to_ascii_lowercase());
        at += length;
    }
    let question = bytes.get(12..at + 4)?;
    let name = labels.join(".");
    asked.lock().unwrap_or_else(PoisonError::into_inner).push(name.clone());
    let rdata = match bytes.get(at..at + 2)? {
        [0, 1] => Some(PublicDns::V4.octets().to_vec()),
        [0, 28] => Some(PublicDns::V6.octets().to_vec()),
        _ => None,
    };
    let records = match rdata {
        _ if name.starts_with("no") => vec![],
        // What does not fit into a datagram.
        Some(rdata) if name.starts_with("big") => vec![rdata; 40],
        rdata => rdata.into_iter().collect(),
    };
    let rcode = if name.starts_with("no") { 3 } else { 0 };
    let mut text = Vec::new();
    for rdata in &records {
        text.extend_from_slice(&[0xc0, 12]);
        text.extend_from_slice(bytes.get(at..at + 4)?);
        text.extend_from_slice(&60_u32.to_be_bytes());
        text.extend_from_slice(&(rdata.len() as u16).to_be_bytes());
        text.extend_from_slice(rdata);
    }
    let truncated = 12 + question.len() + text.len() > limit;
    let count = if truncated { 0 } else { records.len() as u8 };
    let flags = [0x81 | u8::from(truncated) << 1, 0x80 | rcode];
    let header = [bytes.get(..2)?, &flags, &[0, 1, 0, count, 0, 0, 0, 0]].concat();
    Some([&header[..], question, if truncated { &[] } else { &text[..] }].concat())
}
