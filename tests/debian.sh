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

# unpack SUITE FOLDER PACKAGE…: unpacks packages into a folder below that of the suite, in
# place of what was there; once a day at most: sid moves. Without a network what was there
# stays, if there was anything. One at a time in each suite: tests run beside each other.
unpack() {
    suite=$1 root=$cache/$1/$2
    shift 2
    mkdir -p "$cache"
    exec 8>"$cache/$suite.lock"
    flock 8
    if [ -d "$root" ] && [ -n "$(find "$root" -maxdepth 0 -mtime -1)" ]; then
        return
    fi
    folder=$cache/$suite
    # The mirror that this machine uses, if it is a Debian.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Label: Debian' 2>/dev/null | head -n 1)
    mkdir -p "$folder/state/lists/partial" "$folder/cache/archives/partial" "$root.debs"
    : >"$folder/state/status"
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]" \
        "${mirror:-http://deb.debian.org/debian} $suite main" >"$folder/sources.list"
    if ! (cd "$root.debs" && rm -f ./*.deb && apt_of "$suite" update && apt_of "$suite" download "$@"); then
        [ -d "$root" ] && return
        echo "$* of $suite cannot be fetched" >&2
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
