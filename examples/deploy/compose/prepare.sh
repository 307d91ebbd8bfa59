#!/bin/sh
# Makes what the rehearsal needs below ./organisations: for each organisation its keys, a passphrase,
# all cards, its node's file and its table. In a real study every organisation makes its own, on its
# own machine, and compares fingerprints by telephone: ../../three_machines says how.
#
#   sh examples/deploy/compose/prepare.sh
#
# PYTHON: the Python that has mpc-train installed; default: .venv/bin/python of this repository.
set -eu
umask 077
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
out=${1:-$here/organisations}
names="coordinator registry-office hospital-a hospital-b hospital-c study-office"

if [ -e "$out" ]; then
    echo "$out exists already: it may hold keys. Remove it, or name another directory." >&2
    exit 3
fi
mkdir "$out"
cd "$root"
"$python" examples/breast_cancer/make_data.py
for name in $names; do
    mkdir -p "$out/$name/config" "$out/$name/state/keys" "$out/$name/state/runs" "$out/$name/secrets"
    "$python" -c 'import secrets; print(secrets.token_hex(24))' > "$out/$name/secrets/passphrase"
    "$python" -m mpc_train identity new "$name" --home "$out/$name/state/keys" \
        --passphrase-file "$out/$name/secrets/passphrase" > /dev/null
    "$python" -m mpc_train identity card --home "$out/$name/state/keys" > "$out/$name.card"
done
for name in $names; do
    "$python" -m mpc_train roster add --yes "$out"/*.card --home "$out/$name/state/keys" > /dev/null
done
cp examples/breast_cancer/job.toml "$out/coordinator/config/job.toml"
digest=$("$python" -m mpc_train job check examples/breast_cancer/job.toml --format json |
    "$python" -c 'import json, sys; print(json.loads(sys.stdin.readlines()[-1])["digest"])')
cat > "$out/coordinator/config/coordinator.toml" <<TOML
[node]
name = "coordinator"
home = "/var/lib/mpc-train/keys"
run_dir = "/var/lib/mpc-train/runs"
[network]
listen = "tcp://0.0.0.0:7700"
[run]
job = "job.toml"
TOML
for name in registry-office hospital-a hospital-b hospital-c; do
    cat > "$out/$name/config/$name.toml" <<TOML
[node]
name = "$name"
home = "/var/lib/mpc-train/keys"
run_dir = "/var/lib/mpc-train/runs"
[coordinator]
name = "coordinator"
address = "tcp://coordinator:7700"
[rules]
recipients = ["hospital-a", "study-office"]
dealers = ["registry-office"]
evaluators = ["hospital-a", "hospital-b", "hospital-c"]
metrics = ["accuracy", "auc"]
models = ["logistic"]
least_parties = 3
least_test_rows = 20
# Agreed to beforehand, because nobody sits at these terminals: the digest that job check prints.
jobs = ["$digest"]
TOML
    [ "$name" = registry-office ] && continue
    printf '[data]\nbreast-cancer = "/etc/mpc-train/%s.csv"\n' "$name" >> "$out/$name/config/$name.toml"
    cp "examples/breast_cancer/data/$name.csv" "$out/$name/config/"
done
echo "Ready: $out"
