# kerntune: `make run` and `make test` do all the set-up they need on a fresh Debian 12, 13 or testing.

SHELL  := /bin/bash
PYTHON ?= /usr/bin/python3
BUS    ?= private
VENV   := .venv
SUDO   := $(shell [ $$(id -u) -eq 0 ] || echo sudo)

DEBIAN := python3-venv python3-pip python3-dbus-next python3-systemd python3-pyudev python3-psutil dbus \
          dbus-bin polkitd udev systemd zsh jq libglib2.0-bin groff-base zstd
PROMETHEUS := build/prometheus
POWER_PROFILES := build/power-profiles
DEBIAN_VM := qemu-system-x86 qemu-utils mmdebstrap acpica-tools e2fsprogs util-linux

# What of these Debian packages is missing is installed.
define install
missing=$$(comm -13 <(dpkg-query -W -f '$${Status} $${Package}\n' $(1) 2>/dev/null \
        | awk '/^install ok installed/ {print $$4}' | sort) <(printf '%s\n' $(1) | sort)); \
if [ -n "$$missing" ]; then \
    if [ -n "$(SUDO)" ] && ! command -v sudo >/dev/null; then \
        echo "missing, and only root can install them:" $$missing; exit 1; \
    fi; \
    echo "installing Debian packages:" $$missing; \
    $(SUDO) apt-get update -qq && \
    $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
fi
endef

.PHONY: setup setup-vm run test test-pythons test-vm soak bench bench-run bench-vm lint generated deb format clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@if [ -L $(VENV) ]; then \
	    echo "$(VENV) is a link, and setup would clear $$(readlink -f $(VENV)):" \
	        "remove the link, or touch $(VENV)/.ready if that will do"; exit 1; \
	fi
	@$(call install,$(DEBIAN))
	$(PYTHON) -m venv --clear --system-site-packages $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check -e '.[test]'
	@touch $@

# The daemon in the foreground on a bus of its own (BUS=system: the host's): as root on the real host, else simulated.
run: setup
	@BUS=$(BUS) $(VENV)/bin/python -m tests.harness.run

# What changes the real kernel or measures time: nothing else runs beside it.
ALONE := tests/live tests/hostile/test_attacks.py
# As root everything; other users' tests that need root are skipped and counted.
test: setup $(PROMETHEUS)/.ready $(POWER_PROFILES)/.ready
ifdef ARGS
	@$(VENV)/bin/python -m pytest $(ARGS)
else
	@$(VENV)/bin/python -m pytest -n 2 $(addprefix --ignore=,$(ALONE))
	@$(VENV)/bin/python -m pytest $(ALONE)
endif

# What reads our metrics, 23 MB: two programs out of Debian's packages, which would start servers here if installed.
$(PROMETHEUS)/.ready:
	@mkdir -p $(@D) && cd $(@D) && \
	fetch() { apt-get download -qq prometheus prometheus-node-exporter 2>/dev/null; } && \
	{ fetch || { $(SUDO) apt-get update -qq && fetch; }; } && \
	unpack() { dpkg-deb --fsys-tarfile $$1_*.deb | tar -x --strip-components=3 ./usr/bin/$$2; } && \
	unpack prometheus promtool && unpack prometheus-node-exporter prometheus-node-exporter && \
	rm -- *.deb && touch .ready || echo "promtool and node_exporter cannot be fetched: what needs them is skipped"

# power-profiles-daemon of Debian 12 and 13 with the libraries of each, 12 MB: installed it would tune this host.
$(POWER_PROFILES)/.ready: | $(VENV)/.ready
	@$(VENV)/bin/python -m tests.harness.power_profiles || \
	    echo "power-profiles-daemon cannot be fetched: what needs it is skipped"

# The package on a real system, in virtual machines: all tests on Debian 13, and on Debian 12 and testing those where
# they differ. SUITE=bookworm, trixie or forky: all tests on that one. What the first run makes stays in ~/.cache.
# Two machines side by side (-n 0: one); a file stays on one of them.
VM_TESTS = $(VENV)/bin/python -m pytest tests/system -n 2 --dist loadfile --no-loadscope-reorder
test-vm: setup setup-vm deb
ifeq ($(SUITE)$(ARGS),)
	@# Side by side: one machine that boots leaves a CPU idle. What goes wrong here the tests try again, and tell.
	@for suite in trixie bookworm forky; do SUITE=$$suite $(VENV)/bin/python -m tests.system.image.installed & done; \
	wait
endif
	@$(VM_TESTS) $(ARGS)
ifeq ($(SUITE)$(ARGS),)
	@for suite in bookworm forky; do SUITE=$$suite $(VM_TESTS) -m 'every_system and not soak' || exit; done
endif

# Static and unit tests with the Python and the packages of the other two of Debian 12, 13 and testing.
OTHERS = $(filter-out $(shell . /etc/os-release; echo $$VERSION_CODENAME),bookworm trixie forky)
test-pythons: setup setup-vm
	@for suite in $(OTHERS); do \
	    DEBIAN='$(DEBIAN)' $(VENV)/bin/python -m tests.system.image.chroot $$suite -n 2 tests/static tests/unit || exit; \
	done

soak: setup setup-vm deb
	@$(VENV)/bin/python -m pytest tests -o norecursedirs= -m soak $(ARGS)

setup-vm:
	@$(call install,$(DEBIAN_VM))

# Beside TuneD, in one run; quote it only from a quiet machine.
bench: setup
	@$(VENV)/bin/python -m benchmarks.run $(ARGS)

# What `kerntune run` gains a command, on this kernel.
bench-run: setup
	@$(VENV)/bin/python -m benchmarks.gains $(ARGS)

# In the virtual machine: a plugged drive beside a udev rule and TuneD; memory that runs out beside earlyoom,
# systemd-oomd and nobody; and on this host what watching memory costs.
bench-vm: setup setup-vm deb
	@$(VENV)/bin/python -m benchmarks.hotplug $(ARGS)
	@$(VENV)/bin/python -m benchmarks.guard

lint: setup
	@$(VENV)/bin/python -m pytest tests/static $(ARGS)

# The D-Bus manual, the configuration reference and the completions, made from the sources anew.
generated: setup
	@$(VENV)/bin/python -m tools.dbus_manual
	@$(VENV)/bin/python -m tools.config_reference
	@$(VENV)/bin/python -m tools.completions

# build/deb/kerntune_*.deb, with the Debian packages that takes; quick when nothing has changed.
deb:
	@packaging/deb/build.sh

format: setup
	$(VENV)/bin/ruff format src tests tools
	$(VENV)/bin/ruff check --fix src tests tools

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
