# One word per job. `make help` names them.

PREFIX  ?= /usr/local
DESTDIR ?=

# The Rust that rustup installs, also where sudo or a service left it out.
export PATH := $(PATH):$(HOME)/.cargo/bin

CARGO := cargo
RELEASE := target/release
SHIM := target/shim/v6pod-shim
# Built beside it.
HOOK = $(dir $(SHIM))v6pod-hook
WISHES = $(dir $(SHIM))v6pod-wishes
CNI = $(dir $(SHIM))v6pod-cni
NETAVARK = $(dir $(SHIM))v6pod-netavark
# Mapped anew at every start of a container, so they have to stay small. The hook runs behind the shim
# and reads annotations besides.
SHIM_LIMIT := 500000
HOOK_LIMIT := 550000
# How long each fuzz target runs, and which; all unless said.
SECONDS ?= 10
TARGETS ?= $(patsubst fuzz/fuzz_targets/%.rs,%,$(wildcard fuzz/fuzz_targets/*.rs))
# Where packages are put.
DEBS ?= target/debian
# Where the portable package's programs are built.
PORTABLE := target/portable
# The only file that may have unsafe code.
UNSAFE := v6pod-daemon/src/kernel/sys.rs

sbin    := $(DESTDIR)$(PREFIX)/sbin
bin     := $(DESTDIR)$(PREFIX)/bin
libexec := $(DESTDIR)$(PREFIX)/libexec/v6pod
drivers := $(DESTDIR)$(PREFIX)/libexec/netavark
lib     := $(DESTDIR)$(PREFIX)/lib
units   := $(lib)/systemd/system
docs    := $(DESTDIR)$(PREFIX)/share/doc/v6pod
man     := $(DESTDIR)$(PREFIX)/share/man
bash    := $(DESTDIR)$(PREFIX)/share/bash-completion/completions
fish    := $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
# Where this system's zsh looks: a package of Debian has another place.
ZSH     ?= $(PREFIX)/share/zsh/site-functions
zsh     := $(DESTDIR)$(ZSH)
config  := $(DESTDIR)/etc/v6pod
dhclient := $(DESTDIR)/etc/dhcp/dhclient-exit-hooks.d
dispatcher := $(DESTDIR)/etc/NetworkManager/dispatcher.d
dropins := $(DESTDIR)/etc/containers/containers.conf.d
# Podman reads this place for every user, and no other without being told.
hooks   := $(DESTDIR)/usr/share/containers/oci/hooks.d

# The files under systemd/ name the places of a package; what is installed names its own.
relocate := sed -E -e 's,@PREFIX@,$(PREFIX),g' \
	-e 's,/usr/(local/)?(sbin/v6podd|bin/v6podctl|libexec/v6pod|share/doc/v6pod),$(PREFIX)/\2,g'

# The one file of the code that documents name goes beside them.
contract := v6pod-daemon/src/api/openapi.json
relink := sed 's,$(contract),openapi.json,g'

.PHONY: help deps build test test-matrix demo lint fuzz miri bench deb deb-portable dist packages-check install uninstall clean

help:
	@echo 'make deps       install what building and testing need (Debian, as root)'
	@echo 'make build      build the daemon, its CLI and the shim'
	@echo 'make demo       a web server in a rootless container, reached over IPv6, by its name'
	@echo 'make test       all tests that this machine can run'
	@echo 'make test-matrix  every podman, network and runtime on booted hosts, as a table'
	@echo 'make lint       format, clippy, licences, the size of shim, hook and wishes'
	@echo 'make fuzz       each fuzz target for SECONDS ($(SECONDS)); TARGETS names some of them'
	@echo 'make miri       the tests of the pure code under Miri, by a nightly Rust that has it'
	@echo 'make bench      what an attachment costs and what passes through it, beside others'
	@echo 'make deb        a Debian package for this Debian and later ones, in target/debian'
	@echo 'make deb-portable  the same for Debian 11 and later (needs mmdebstrap)'
	@echo 'make dist       the sources of this commit as a tarball, and what builds packages of it elsewhere'
	@echo 'make packages-check  build each package by its own tools, and look at it (as root, some minutes)'
	@echo 'make install    to DESTDIR and PREFIX ($(PREFIX))'
	@echo 'make uninstall  undo that; configuration and state stay'
	@echo 'make clean      remove what was built'

deps:
	@tests/setup/deps.sh

build:
	@echo '==> build: v6podd and v6podctl (a few minutes the first time)'
	$(CARGO) build --locked --release -p v6pod-daemon --bins
	@echo '==> build: v6pod-shim, v6pod-hook, v6pod-wishes, v6pod-cni, v6pod-netavark'
	$(CARGO) build --locked --profile shim -p v6pod-shim

test: deps
	@tests/run.sh

# The hosts that `make deps` does not make: what these podmans are is for their suites to say. The
# oldest also has all that is tested of a whole host.
test-matrix: deps
	@for suite in bullseye networkmanager forky experimental; do tests/setup/root.sh $$suite || exit; done
	@$(MAKE) --no-print-directory deb-portable
	V6POD_TEST_REQUIRE=all V6POD_TEST_ARGS="--include-ignored --nocapture" \
		tests/run.sh --test matrix --test netavark --test podman_3 --test cni --test delegation
	V6POD_TEST_SUITE=bullseye V6POD_TEST_REQUIRE=all V6POD_TEST_ARGS=--include-ignored \
		tests/run.sh --test whole_host

demo:
	@tests/setup/deps.sh demo
	@$(MAKE) --no-print-directory build
	@tests/demo.sh

lint:
	@echo '==> lint: format'
	$(CARGO) fmt --all --check
	@echo '==> lint: clippy'
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@echo '==> lint: the fuzz targets'
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --locked --manifest-path fuzz/Cargo.toml --target-dir target \
		--no-default-features --lib --test smoke -- -D warnings
	@echo '==> lint: unsafe code stands in one file'
	@! git grep -nE '\bunsafe\b *(\{|fn|impl|trait|extern)|(allow|expect)\(.*unsafe_code' \
		-- '*.rs' ':!$(UNSAFE)'
	@echo '==> lint: licences, bans, sources'
	@command -v cargo-deny >/dev/null || { \
		echo '==> lint: building cargo-deny (once, some minutes)'; \
		CARGO_PROFILE_DEV_DEBUG=0 $(CARGO) install --locked --debug cargo-deny; }
	$(CARGO) deny --locked check licenses bans sources
	@echo '==> lint: the size of shim, hook and wishes'
	$(CARGO) build --locked --profile shim -p v6pod-shim
	@for limit in $(SHIM):$(SHIM_LIMIT) $(WISHES):$(SHIM_LIMIT) $(HOOK):$(HOOK_LIMIT); do \
		program=$${limit%:*} most=$${limit#*:}; size=$$(stat -c %s $$program) && \
		echo "$$program: $$size bytes of $$most" && test $$size -le $$most || exit; done

# What is new goes to fuzz/grown; fuzz/corpus is only read. Unstable flags are what keeps cargo-fuzz
# from a stable Rust.
fuzz:
	@command -v cargo-fuzz >/dev/null || { \
		echo '==> fuzz: building cargo-fuzz (once, a minute)'; \
		$(CARGO) install --locked cargo-fuzz; }
	@set -e; for target in $(TARGETS); do \
		echo "==> fuzz: $$target, $(SECONDS) s"; mkdir -p fuzz/grown/$$target; \
		RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run $$target fuzz/grown/$$target fuzz/corpus/$$target \
			-- -max_total_time=$(SECONDS) -max_len=16384 -timeout=5; done

# The crate that is all pure. Of the daemon, what asks the system cannot run there.
miri:
	$(CARGO) +nightly miri test --locked -p v6pod-proto

bench: deps build
	@echo '==> bench: interleaved runs (five minutes)'
	$(CARGO) run --locked --release -p v6pod-tests --bin v6pod-bench -- --write docs/bench.md

deb: build
	@packaging/deb.sh $(DEBS)

# Compiled by the same Rust, linked with an older C library: not a static one, for the daemon asks NSS
# who is in which group, and a static program cannot (users of LDAP and sssd).
deb-portable:
	@packaging/sysroot.sh $(PORTABLE)/sysroot
	@export CC=$(abspath $(PORTABLE)/sysroot/cc) CARGO_TARGET_DIR=$(PORTABLE) && \
	export RUSTFLAGS="$(RUSTFLAGS) -Clinker=$$CC" && \
	$(MAKE) --no-print-directory deb DEBS=$(DEBS) \
		RELEASE=$(PORTABLE)/release SHIM=$(PORTABLE)/shim/v6pod-shim

# Fedora's and Arch's packages are built of it where those are.
dist:
	@packaging/dist.sh target/dist

packages-check:
	@packaging/check.sh

# Does not build: `make build` as yourself, then this as root.
install:
	@for program in $(RELEASE)/v6podd $(SHIM) $(HOOK) $(WISHES) $(CNI) $(NETAVARK); do \
		test -x $$program || { echo 'first: make build' >&2; exit 1; }; done
	install -D -m 0755 $(RELEASE)/v6podd $(sbin)/v6podd
	install -D -m 0755 $(RELEASE)/v6podctl $(bin)/v6podctl
	install -D -m 0755 $(SHIM) $(libexec)/v6pod-shim
	ln -sfn v6pod-shim $(libexec)/slirp4netns
	ln -sfn v6pod-shim $(libexec)/pasta
	install -D -m 0755 $(HOOK) $(libexec)/v6pod-hook
	install -D -m 0755 $(WISHES) $(libexec)/v6pod-wishes
	@# Where engines look for the plugin of type v6pod, and podman for that of the driver v6pod.
	install -D -m 0755 $(CNI) $(lib)/cni/v6pod
	install -D -m 0755 $(NETAVARK) $(drivers)/v6pod
	install -d $(units) $(config) $(dropins) $(hooks) $(docs) $(lib)/sysusers.d $(lib)/tmpfiles.d
	for unit in v6podd.service v6podd.socket v6podd-dns.socket; do \
		$(relocate) systemd/$$unit | install -m 0644 /dev/stdin $(units)/$$unit || exit; done
	install -m 0644 systemd/v6pod.sysusers $(lib)/sysusers.d/v6pod.conf
	install -m 0644 systemd/v6pod.tmpfiles $(lib)/tmpfiles.d/v6pod.conf
	@# For who has dhclient, or NetworkManager, which runs what may be executed; nothing else reads these.
	install -d $(dhclient) $(dispatcher)
	$(relocate) systemd/v6pod.dhclient | install -m 0644 /dev/stdin $(dhclient)/v6pod
	$(relocate) systemd/v6pod.networkmanager | install -m 0755 /dev/stdin $(dispatcher)/90-v6pod
	install -m 0644 systemd/10-v6pod.network $(docs)
	$(relocate) systemd/10-v6pod.conf | install -m 0644 /dev/stdin $(dropins)/10-v6pod.conf
	@# In one go: half a hook file would keep every container of the machine from starting.
	$(relocate) systemd/v6pod-hook.json | install -m 0644 /dev/stdin $(hooks)/.v6pod.new
	mv -f $(hooks)/.v6pod.new $(hooks)/v6pod.json
	@# As they stand here, so that their links lead somewhere.
	install -d $(docs)/docs $(docs)/systemd
	for page in README.md CHANGELOG.md SECURITY.md docs/*.md; do \
		$(relink) $$page | install -m 0644 /dev/stdin $(docs)/$$page || exit; done
	install -m 0644 docs/*.png docs/*.json docs/*.yml $(docs)/docs
	install -m 0644 systemd/v6pod.toml systemd/shim.toml $(docs)/systemd
	install -m 0644 $(contract) $(docs)/openapi.json
	@# By the program itself, which cannot say anything else than it does.
	install -d $(man)/man1 $(man)/man8 $(bash) $(zsh) $(fish)
	$(RELEASE)/v6podctl man $(man)/man1 && mv -f $(man)/man1/v6podd.8 $(man)/man8/
	$(RELEASE)/v6podctl completions bash >$(bash)/v6podctl
	$(RELEASE)/v6podctl completions zsh >$(zsh)/_v6podctl
	$(RELEASE)/v6podctl completions fish >$(fish)/v6podctl.fish
	@# What an administrator has written is never overwritten.
	test -e $(config)/v6pod.toml || install -m 0644 systemd/v6pod.toml $(config)/v6pod.toml
	test -e $(config)/shim.toml || install -m 0644 systemd/shim.toml $(config)/shim.toml
	@# On the running system the daemon's user and directories are made too.
	if test -z '$(DESTDIR)' -a -d /run/systemd/system; then \
		systemd-sysusers $(lib)/sysusers.d/v6pod.conf && \
		systemd-tmpfiles --create $(lib)/tmpfiles.d/v6pod.conf && \
		systemctl daemon-reload; fi
	@echo '==> install: now systemctl enable --now v6podd'

uninstall:
	if test -z '$(DESTDIR)' -a -d /run/systemd/system; then \
		systemctl disable --now v6podd.socket v6podd-dns.socket v6podd.service; fi
	@# These first: podman must not be told to run what is gone.
	rm -f $(hooks)/v6pod.json $(dropins)/10-v6pod.conf $(dhclient)/v6pod $(dispatcher)/90-v6pod
	rm -f $(sbin)/v6podd $(bin)/v6podctl $(addprefix $(units)/,v6podd.service v6podd.socket v6podd-dns.socket)
	rm -f $(lib)/sysusers.d/v6pod.conf $(lib)/tmpfiles.d/v6pod.conf
	rm -f $(libexec)/slirp4netns $(libexec)/pasta $(libexec)/v6pod-shim $(libexec)/v6pod-hook
	rm -f $(libexec)/v6pod-wishes $(lib)/cni/v6pod $(drivers)/v6pod
	rm -rf $(docs)
	rm -f $(man)/man1/v6podctl.1 $(man)/man1/v6podctl-*.1 $(man)/man8/v6podd.8
	rm -f $(bash)/v6podctl $(zsh)/_v6podctl $(fish)/v6podctl.fish
	-rmdir $(libexec) $(drivers)
	@echo '==> uninstall: $(config), /run/v6pod and /var/lib/v6pod stay; so does what serves'

clean:
	$(CARGO) clean
