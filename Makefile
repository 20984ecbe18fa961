# Entry points for people; .ci/run is the one for machines. `make help` lists them.
SHELL := bash
.DEFAULT_GOAL := help
ENV := . tools/env.sh &&

.PHONY: help run test build debug bench lint fmt docs tidy unit chaos fuzz-smoke chart image package package-test kube prerequisites

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24

run: prerequisites ## build, start a server, stream example events through it, keep serving
	@tools/demo.sh

test: prerequisites ## formatting, lints, documentation, fuzz smoke, all tests: what CI runs
	@tools/test.sh

build: prerequisites ## the release binary
	@$(ENV) . tools/notice.sh && announce_build release && \
	  cargo build --release --locked -p aquifer && \
	  ls -l "$$CARGO_TARGET_DIR/release/aquifer"

debug: prerequisites ## the binary without optimisation
	@$(ENV) . tools/notice.sh && announce_build debug && cargo build --locked -p aquifer

bench: prerequisites ## measure the performance contract (ARGS="--quick" for a short run)
	@tools/bench.sh $(ARGS)

unit: prerequisites ## unit tests of the crates only
	@$(ENV) cargo test --workspace --lib --locked

lint: prerequisites ## clippy as CI runs it
	@$(ENV) cargo clippy --workspace --all-targets --locked -- -D warnings

fmt: ## format the code
	@$(ENV) cargo fmt --all

tidy: prerequisites ## crate directions, sizes and banned words
	@$(ENV) cargo test --locked -p aquifer-tests --test tidy

fuzz-smoke: prerequisites ## every fuzz target for 30 s
	@tools/fuzz.sh

chaos: prerequisites ## real processes under faults for half an hour, as root (ARGS="--seconds 60 --seed 1")
	@tools/chaos.sh $(ARGS)

chart: debug ## the Helm chart, dashboards, alerts, image and compose file, without a cluster
	@$(ENV) deploy/check.sh --aquifer "$$CARGO_TARGET_DIR/debug/aquifer"

image: build ## the image, as target/aquifer-image.tar, and its SBOM, as root and with buildah
	@$(ENV) mkdir -p target && rm -f target/aquifer-image.tar && \
	  deploy/docker/build.sh "$$CARGO_TARGET_DIR/release/aquifer" docker-archive:target/aquifer-image.tar:localhost/aquifer:test \
	  target/aquifer-image.cdx.json

package: build ## packages of the release binary in dist/: Debian, Python, a tarball, SBOM, SHA256SUMS
	@$(ENV) deploy/package/build.sh "$$CARGO_TARGET_DIR/release/aquifer" dist

package-test: build ## install, use and remove the packages on roots of their own, as root
	@deploy/package/test.sh

kube: image ## the chart on a real Kubernetes on this machine, as root; the first time builds Kubernetes
	@deploy/kube/test.sh target/aquifer-image.tar

docs: prerequisites ## API documentation of every crate
	@$(ENV) RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --workspace --no-deps --locked

prerequisites:
	@tools/prerequisites.sh
