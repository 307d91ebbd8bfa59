"""`mpc-train policy`: an organisation's rules as a file that its people sign."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from mpc_train.base.printing import escaped, say
from mpc_train.commands.common import (
    Format,
    FormatOption,
    HomeOption,
    PassphraseFdOption,
    PassphraseFileOption,
    emit,
    find_name,
    home_of,
    open_vault,
    reporting,
)

if TYPE_CHECKING:
    from mpc_train.admission.policy import Policy

policy = typer.Typer(
    no_args_is_help=True, help="The rules of an organisation's nodes, signed by its people."
)

PolicyArgument = Annotated[Path, typer.Argument(metavar="POLICY.toml", help="The policy file.")]


@policy.command("sign")
def policy_sign(
    path: PolicyArgument,
    name: Annotated[
        str | None, typer.Option(help="The signer's identity; may be omitted if there is only one.")
    ] = None,
    home: HomeOption = None,
    passphrase_file: PassphraseFileOption = None,
    passphrase_fd: PassphraseFdOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Show a policy and add your signature to the file beside it.

    Signatures of an earlier text are left out: everybody signs anew after a change.
    """
    with reporting(output):
        from mpc_train.admission.policy import Signatures, read_policy, signed
        from mpc_train.admission.rules import today
        from mpc_train.errors import ConfigError
        from parties.files import write_atomic

        found = read_policy(path)
        folder = home_of(home)
        vault = open_vault(folder, find_name(folder, name), passphrase_file, passphrase_fd)
        statements = signed(found, vault.card.name, today(), vault)
        try:
            content = msgspec.json.encode(Signatures(statements)) + b"\n"
            write_atomic(found.signatures, content, 0o644)
        except OSError as error:
            raise ConfigError(
                f"{found.signatures}: cannot be written ({error.strerror})"
            ) from error
        signers = [statement.signer for statement in statements]
        if output is Format.json:
            record = {"status": "ok", "digest": found.digest, "signatures": str(found.signatures)}
            emit(record | {"signers": signers})
            return
        say("\n".join(_lines(found)))
        say(f"Signed by {', '.join(signers)}: {found.signatures}")


@policy.command("show")
def policy_show(path: PolicyArgument, output: FormatOption = Format.text) -> None:
    """Show what a policy allows and whose signatures are beside it, without verifying these."""
    with reporting(output):
        from mpc_train.admission.policy import read_policy, read_signatures

        found = read_policy(path)
        named = {one.signer: str(one.day) for one in read_signatures(found)}
        if output is Format.json:
            emit(_record(found) | {"named": named})
            return
        say("\n".join(_lines(found)))
        listed = ", ".join(f"{name} ({day})" for name, day in named.items())
        say(escaped(f"Signatures, not verified: {listed or 'none'}"))


@policy.command("verify")
def policy_verify(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[POLICY.toml]", help="The policy; default: that of --config."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A node's own file: whether this node accepts its policy today."),
    ] = None,
    roster: Annotated[
        Path | None, typer.Option(help="Cards of the signers; default: roster in the home.")
    ] = None,
    home: HomeOption = None,
    output: FormatOption = Format.text,
) -> None:
    """Verify the signatures of a policy; with --config, everything that the node requires of it.

    Needs no private key, and changes nothing.
    """
    with reporting(output):
        from mpc_train.admission.policy import PolicyRefusedError, read_policy, signers_of
        from mpc_train.admission.rules import today
        from mpc_train.errors import ConfigError
        from mpc_train.node.policy import accepted
        from mpc_train.run.node_config import load_node_config
        from parties.keys import lifetime
        from parties.keys.roster import Roster

        if (path is None) == (config is None):
            raise ConfigError("name either a policy or, with --config, a node's own file")
        if config is not None:
            node = load_node_config(config)
            known = Roster.load(roster or node.place.roster)
            policy_in_force = accepted(node, known, today()).accepted
            if policy_in_force is None:
                raise ConfigError(f"{config}: names no policy; its rules are its own [rules]")
            found = policy_in_force
        else:
            known = Roster.load(roster or home_of(home) / "roster")
            found = read_policy(path or Path())
        valid, faults = signers_of(
            found, {card.name: card for card in known.current(lifetime.now())}
        )
        if config is None and (faults or not valid):
            said = "; ".join(what for _, _, what in faults) or "nobody has signed it"
            codes = tuple(dict.fromkeys(code for _, code, _ in faults)) or ("unsigned",)
            raise PolicyRefusedError(f"the policy {found.path}: {said}", codes)
        if output is Format.json:
            emit(_record(found) | {"signers": list(valid)})
            return
        say("\n".join(_lines(found)))
        say(f"Signed by {', '.join(valid)}; the signatures verify.")
        if config is not None:
            say(f"{node.place.name} accepts it.")


def _record(found: "Policy") -> dict[str, Any]:
    return {
        "status": "ok",
        "digest": found.digest,
        "policy": msgspec.to_builtins(found.terms),
        "rules": msgspec.to_builtins(found.rules),
    }


def _lines(found: "Policy") -> list[str]:
    """The policy for people: what it is for, and every rule that is set, default or not."""
    from mpc_train.base.strict_toml import quoted

    terms = found.terms
    lines = [
        f"Policy {found.path}, digest {found.digest}",
        f"  for {', '.join(terms.nodes)}, number {terms.number}, valid from {terms.valid_from} to "
        f"{terms.valid_until} (UTC)",
    ]
    for key, value in msgspec.to_builtins(found.rules).items():
        lines.append(f"  {key:22} {'any' if value is None else quoted(value)}")
    return lines
