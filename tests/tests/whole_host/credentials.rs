//! Secrets of Consul's reach the daemon as credentials of its unit, and are shown nowhere.

use v6pod_tests::{Consul, PATIENCE, eventually, require};

use super::{configure, installed};

#[test]
fn the_token_of_consul_is_a_credential() {
    let _machine = require!(WholeHost);
    let host = installed();
    let tables =
        "[registry]\nkind = \"consul\"\n[registry.consul]\ntoken_file = \"consul-token\"\n";
    configure(&host, tables);
    let registry = |awaited: &str| {
        host.systemctl("restart v6podd.service").ok();
        eventually(PATIENCE, awaited, || {
            let status = host.sh("v6podctl --json status");
            status.ok().contains(awaited).then_some(())
        });
    };
    registry("token cannot be read");
    host.write("/etc/v6pod/consul-token", "b1gs33cr3t");
    host.sh("chmod 600 /etc/v6pod/consul-token").ok();
    // There is no Consul; the token it would be sent is there.
    registry("registry cannot be reached");

    // Nor is there one to take names back: what is left is said, and nothing waits for ever.
    let user = host.log_in("anna");
    user.sleeper("web", &[]);
    host.systemctl("stop v6podd.socket v6podd.service").ok();
    let purge = host.sh("v6podctl purge");
    assert!(purge.fails().contains("may still hold web;"), "{purge}");
    let links = host.sh("ip -br link; nft list tables");
    assert!(!links.ok().contains("v6p"), "{links}");
    user.sleeper("db", &[]);
    host.systemctl("start v6podd.service").ok();
    user.sleeper("mail", &[]);
    let said = host.sh("apt-get purge --yes v6pod 2>&1").ok().to_owned();
    assert!(said.contains("may still hold mail;"), "{said}");
}

/// An agent that wants to be shown a certificate, and the files for both of its ends.
const TLS_AGENT: &str = r#"
mkdir /var/lib/consul && cd /var/lib/consul
"$1" tls ca create && "$1" tls cert create -server -additional-ipaddress ::1 && "$1" tls cert create -client
install -m 644 consul-agent-ca.pem /etc/v6pod/ca.pem
install -m 644 dc1-client-consul-0.pem /etc/v6pod/cert.pem
install -m 600 -o root dc1-client-consul-0-key.pem /etc/v6pod/consul-key
cat >agent.hcl <<'END'
bind_addr = "::1"
client_addr = "::1"
node_name = "whole"
disable_update_check = true
ports { https = 8501 }
ca_file = "consul-agent-ca.pem"
cert_file = "dc1-server-consul-0.pem"
key_file = "dc1-server-consul-0-key.pem"
verify_incoming_https = true
END
systemd-run --quiet --unit=consul --working-directory=/var/lib/consul "$1" agent -dev -config-file agent.hcl
"#;

#[test]
fn the_key_that_consul_is_shown_is_a_credential() {
    let _machine = require!(WholeHost, Consul);
    let host = installed();
    let consul = host.take_in(&Consul::program().expect("Consul was asked for"));
    host.sh(&format!("set -- {consul}\n{TLS_AGENT}")).ok();
    let tables = "[registry]\nkind = \"consul\"\n[registry.consul]\naddress = \"https://[::1]:8501\"\n\
                  datacenter = \"dc1\"\nca_file = \"/etc/v6pod/ca.pem\"\n\
                  cert_file = \"/etc/v6pod/cert.pem\"\nkey_file = \"consul-key\"\n";
    configure(&host, tables);
    let status = |awaited: &str| {
        eventually(PATIENCE, awaited, || {
            host.sh("v6podctl status").ok().contains(awaited).then_some(())
        });
    };
    host.systemctl("restart v6podd.service").ok();
    // A credential that the unit does not have.
    status("consul, not healthy: the registry cannot be reached");
    host.write(
        "/etc/systemd/system/v6podd.service.d/consul.conf",
        "[Service]\nLoadCredential=consul-key:/etc/v6pod/consul-key\n",
    );
    host.systemctl("daemon-reload").ok();
    host.systemctl("restart v6podd.service").ok();
    let user = host.log_in("anna");
    let container = user.sleeper("web", &[]);
    let address = user.attachment(&container).address.to_string();
    eventually(PATIENCE, "it is in Consul", || {
        let services = host.sh("curl -sS --globoff http://[::1]:8500/v1/agent/services");
        services.ok().contains(&address).then_some(())
    });
    assert!(!host.journal("v6podd.service").contains("PRIVATE KEY"));
}
