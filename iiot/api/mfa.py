"""The second factor: setting it up, signing in with it, switching it off."""

from iiot import tenancy, web
from iiot.api.auth import Code, Password, Token, TokensOut, client, tokens
from iiot.services import mfa, sign_in

api = web.Api("mfa")


class SetUpOut(web.Out):
    """What an authenticator needs: `secret` to type, `uri` (otpauth://…) as a QR code. Shown once."""

    secret: str
    uri: str


class CodeIn(web.Body):
    """A code of the authenticator."""

    code: Code


class SecondStepIn(CodeIn):
    """The token of the first step, and a code."""

    mfa_token: Token


class ProofIn(CodeIn):
    """Password and code."""

    password: Password


class RecoveryCodesOut(web.Out):
    """Ten codes that each replace the authenticator once. Shown once."""

    recovery_codes: list[str]


@api.route("POST", "/auth/mfa/setup", out=SetUpOut, before_setup=True, problems=(409,))
def setup(ctx: web.Context) -> mfa.SetUp:
    """Begin to set up a second factor (TOTP, RFC 6238). It counts once it is confirmed."""
    principal = ctx.principal
    with tenancy.work(tenancy.system("sign-in")) as db:
        return mfa.start(db, principal)


@api.route("POST", "/auth/mfa/confirm", body=CodeIn, out=RecoveryCodesOut, before_setup=True, problems=(409,))
def confirm(ctx: web.Context, body: CodeIn) -> RecoveryCodesOut:
    """Switch the second factor on with a first code. The recovery codes of the answer are shown once."""
    principal = ctx.principal
    web.spend("second-factor", principal.uid)
    with tenancy.work(tenancy.system("sign-in")) as db:
        return RecoveryCodesOut(recovery_codes=mfa.confirm(db, principal, body.code))


@api.route("POST", "/auth/mfa/login", auth="none", body=SecondStepIn, out=TokensOut, problems=(401,))
def login(ctx: web.Context, body: SecondStepIn) -> TokensOut:
    """Sign in, second step: the `mfa_token` of POST /auth/login and a code. Five attempts a minute for an account; each code works once."""
    web.spend("second-factor", sign_in.holder(body.mfa_token))
    return tokens(sign_in.finish(body.mfa_token, body.code, client(ctx)))


@api.route("POST", "/auth/mfa/disable", body=ProofIn, problems=(503,))
def disable(ctx: web.Context, body: ProofIn) -> None:
    """Switch the second factor off."""
    principal = ctx.principal
    web.spend("second-factor", principal.uid)
    mfa.disable(principal, body.password, body.code)


@api.route("POST", "/auth/mfa/recovery-codes", body=ProofIn, out=RecoveryCodesOut, problems=(503,))
def regenerate_codes(ctx: web.Context, body: ProofIn) -> RecoveryCodesOut:
    """Ten new recovery codes; the old ones stop working."""
    principal = ctx.principal
    web.spend("second-factor", principal.uid)
    return RecoveryCodesOut(recovery_codes=mfa.regenerate(principal, body.password, body.code))
