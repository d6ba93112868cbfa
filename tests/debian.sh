# Packages of other Debian suites, unpacked into a cache folder and not installed. To be
# sourced; LONGSHORE_TEST_CACHE is the folder.
cache=${LONGSHORE_TEST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/longshore}

# apt with a list, a state and a cache of its own for one suite.
apt_of() {
    folder=$cache/$1
    shift
    apt-get -qq \
        -o Dir::Etc::SourceList="$folder/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State="$folder/state" -o Dir::State::status="$folder/state/status" \
        -o Dir::Cache="$folder/cache" -o APT::Sandbox::User=root "$@"
}

# These packages of a suite, into this folder.
alone() {
    # shellcheck disable=SC2086 # a list
    (cd "$2" && apt_of "$1" download $3)
}

# The same with all that they depend on.
with_dependencies() {
    mkdir "$2/partial"
    # shellcheck disable=SC2086 # a list
    apt_of "$1" -o Dir::Cache::Archives="$2" install --yes --download-only --no-install-recommends $3
}

# unpack HOW SUITE FOLDER "PACKAGE…": unpacks packages, `alone` or `with_dependencies`, into a
# folder below that of the suite, in place of what was there; once in $days (1) at most: sid
# moves. Without a network what was there stays, if there was anything. One at a time in each
# suite: tests run beside each other.
unpack() {
    how=$1 suite=$2 root=$cache/$2/$3 packages=$4
    mkdir -p "$cache"
    exec 8>"$cache/$suite.lock"
    flock 8
    if [ -d "$root" ] && [ -n "$(find "$root" -maxdepth 0 -mtime "-${days:-1}")" ]; then
        return
    fi
    folder=$cache/$suite
    # The mirror that this machine uses, if it is a Debian.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Label: Debian' 2>/dev/null | head -n 1)
    rm -rf "$root.debs"
    mkdir -p "$folder/state/lists/partial" "$folder/cache/archives/partial" "$root.debs"
    : >"$folder/state/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
        "${mirror:-http://deb.debian.org/debian} $suite main" >"$folder/sources.list"
    if ! { apt_of "$suite" update && "$how" "$suite" "$root.debs" "$packages"; }; then
        [ -d "$root" ] && return
        echo "$packages of $suite cannot be fetched" >&2
        return 1
    fi
    rm -rf "$root.new"
    mkdir "$root.new"
    for package in "$root.debs"/*.deb; do
        dpkg-deb --extract "$package" "$root.new"
    done
    rm -rf "$root" "$root.debs"
    mv "$root.new" "$root"
    touch "$root"
}
