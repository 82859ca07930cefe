"""Every error that Nagaya raises on purpose.

A class's docstring is its English message (a template over the facts it was raised with), ``ja`` is the same in
Japanese, ``code`` is what programs branch on, and ``status`` is what an HTTP client sees. Facts must be safe to
show: never a token, a key, or another person's text.
"""

from __future__ import annotations

from typing import ClassVar


class NagayaError(Exception):
    """Something went wrong inside Nagaya; the request id finds it in the server's log."""

    code: ClassVar[str] = "server_error"
    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    ja: ClassVar[str] = "Nagaya の内部で問題が起きました。リクエスト ID でサーバーのログを探せます。"

    def __init__(self, *, param: str | None = None, retry_after_s: int | None = None, **facts: object) -> None:
        self.param = param
        self.retry_after_s = retry_after_s
        self.facts = facts
        super().__init__(self.message("en"))

    def message(self, language: str = "en") -> str:
        """The message in ``en`` or ``ja``; any other language gives English."""
        template = self.ja if language == "ja" else (type(self).__doc__ or self.code)
        return template.strip().format(**self.facts) if self.facts else template.strip()


# --- what the caller sent -------------------------------------------------------------------------------------


class InvalidRequest(NagayaError):
    """{problem}"""

    code = "invalid_request"
    status = 400
    type = "invalid_request_error"
    ja = "{problem_ja}"

    def __init__(self, problem: str, problem_ja: str, *, param: str | None = None) -> None:
        super().__init__(param=param, problem=problem, problem_ja=problem_ja)


class MalformedJson(NagayaError):
    """The body is not valid JSON: {detail}. Send one UTF-8 JSON object."""

    code = "invalid_json"
    status = 400
    type = "invalid_request_error"
    ja = "本文が正しい JSON ではありません（{detail}）。UTF-8 の JSON オブジェクトを 1 つ送ってください。"


class UnknownParameter(NagayaError):
    """Unknown parameter: '{param}'."""

    code = "unknown_parameter"
    status = 400
    type = "invalid_request_error"
    ja = "知らないパラメーターです: '{param}'。"

    def __init__(self, param: str) -> None:
        super().__init__(param=param)
        self.facts = {"param": param}
        self.args = (self.message("en"),)


class InvalidType(NagayaError):
    """Invalid type for '{at}': {detail}."""

    code = "invalid_type"
    status = 400
    type = "invalid_request_error"
    ja = "'{at}' の型が違います: {detail}。"


class InvalidValue(NagayaError):
    """Invalid value for '{at}': {detail}."""

    code = "invalid_value"
    status = 400
    type = "invalid_request_error"
    ja = "'{at}' の値が正しくありません: {detail}。"


class MissingParameter(NagayaError):
    """Missing required parameter: '{at}'."""

    code = "missing_required_parameter"
    status = 400
    type = "invalid_request_error"
    ja = "必要なパラメーター '{at}' がありません。"


class UnsupportedParameter(NagayaError):
    """Unsupported parameter: '{at}' is known but cannot be used here; leave it out."""

    code = "unsupported_parameter"
    status = 400
    type = "invalid_request_error"
    ja = "パラメーター '{at}' はここでは使えません。外してください。"


class Mem0CallNotOffered(NagayaError):
    """mem0's {call} are not offered here; leave this call out."""

    code = "mem0_call_not_offered"
    status = 400
    type = "invalid_request_error"
    ja = "mem0 の {call} はここにはありません。この呼び出しを外してください。"


class BodyTooLarge(NagayaError):
    """The body is larger than {limit_bytes} bytes; send less in one request."""

    code = "request_too_large"
    status = 413
    type = "invalid_request_error"
    ja = "本文が {limit_bytes} バイトを超えています。1 回に送る量を減らしてください。"


class NotHttp(NagayaError):
    """What was sent is not a valid HTTP request."""

    code = "invalid_http"
    status = 400
    type = "invalid_request_error"
    ja = "送られたものは正しい HTTP リクエストではありません。"


class HeadTooLarge(NagayaError):
    """The headers are larger than {limit_bytes} bytes; send fewer or shorter ones."""

    code = "headers_too_large"
    status = 431
    type = "invalid_request_error"
    ja = "ヘッダーが {limit_bytes} バイトを超えています。数を減らすか短くしてください。"


class MediaTypeRefused(NagayaError):
    """The body must be JSON; send it with Content-Type: application/json."""

    code = "unsupported_media_type"
    status = 415
    type = "invalid_request_error"
    ja = "本文は JSON で送ってください。Content-Type: application/json を付けます。"


class NotAcceptable(NagayaError):
    """The answer is JSON or an event stream; let Accept name application/json, text/event-stream or both."""

    code = "not_acceptable"
    status = 406
    type = "invalid_request_error"
    ja = "応答は JSON かイベントストリームです。Accept に application/json か text/event-stream、または両方を書いてください。"


class FormExpected(MediaTypeRefused):
    """The body must be a form; send it with Content-Type: multipart/form-data and its boundary."""

    ja = "本文はフォームで送ってください。Content-Type: multipart/form-data に boundary を付けます。"


class InvalidForm(NagayaError):
    """The form cannot be read: {detail}. Send multipart/form-data as RFC 7578 has it."""

    code = "invalid_form"
    status = 400
    type = "invalid_request_error"
    ja = "フォームを読み取れません（{detail}）。RFC 7578 の multipart/form-data で送ってください。"


class Draining(NagayaError):
    """The server is stopping; send the request again, it reaches another."""

    code = "server_draining"
    status = 503
    ja = "サーバーは停止しようとしています。もう一度送れば別のサーバーに届きます。"


class TooSlow(NagayaError):
    """The body did not arrive within {limit_s} seconds; send it again."""

    code = "request_timeout"
    status = 408
    type = "invalid_request_error"
    ja = "本文が {limit_s} 秒以内に届きませんでした。もう一度送ってください。"


class NotFound(NagayaError):
    """No such {kind}: it does not exist, or it is not yours."""

    code = "not_found"
    status = 404
    type = "invalid_request_error"
    ja = "その{kind_ja}は見つかりません。存在しないか、あなたのものではありません。"

    KINDS: ClassVar[dict[str, str]] = {
        "conversation": "会話", "item": "項目", "response": "応答", "tenant": "テナント", "page": "ページ",
        "model": "モデル", "api key": "API キー", "issuer": "発行者", "path": "パス", "chat completion": "チャット応答",
        "secret": "シークレット", "key": "鍵", "export": "エクスポート", "file": "ファイル", "memory": "記憶", "user": "ユーザー",
    }  # fmt: skip

    def __init__(self, kind: str = "path", *, param: str | None = None) -> None:
        super().__init__(param=param, kind=kind, kind_ja=self.KINDS.get(kind, kind))


class MethodNotAllowed(NagayaError):
    """This path does not answer that method; see the Allow header."""

    code = "method_not_allowed"
    status = 405
    type = "invalid_request_error"
    ja = "このパスはそのメソッドに応えません。Allow ヘッダーを見てください。"


class Conflict(NagayaError):
    """The thing was changed by somebody else meanwhile; read it again and repeat."""

    code = "conflict"
    status = 409
    type = "invalid_request_error"
    ja = "その間に別の誰かが変更しました。読み直してからもう一度行ってください。"


class IdempotencyMismatch(NagayaError):
    """This Idempotency-Key was used with another request; use a new key for a new request."""

    code = "idempotency_key_reused"
    status = 422
    type = "invalid_request_error"
    ja = "この Idempotency-Key は別のリクエストで使われました。新しいリクエストには新しいキーを使ってください。"


class IdempotencyInProgress(NagayaError):
    """The first request with this Idempotency-Key is still being answered; try again shortly."""

    code = "idempotency_in_progress"
    status = 409
    type = "invalid_request_error"
    ja = "この Idempotency-Key の最初のリクエストをまだ処理中です。少し後でもう一度試してください。"


# --- who the caller is ----------------------------------------------------------------------------------------


class Unauthenticated(NagayaError):
    """The token or API key is missing, expired or not valid here; sign in again or use another key."""

    code = "invalid_api_key"
    status = 401
    type = "authentication_error"
    ja = "トークンまたは API キーがないか、期限切れか、ここでは無効です。サインインし直すか別のキーを使ってください。"


class TokenRefused(Unauthenticated):
    """The token or API key is missing, expired or not valid here; sign in again or use another key."""

    def __init__(self, reason: str) -> None:
        # The reason is for the log and the audit trail; a caller learns nothing that helps to forge a token.
        super().__init__()
        self.reason = reason


class IssuerUnreachable(NagayaError):
    """The keys of the token's issuer cannot be fetched just now; try again later."""

    code = "issuer_unreachable"
    status = 503
    ja = "トークンの発行者の鍵を今は取得できません。後でもう一度試してください。"


class Forbidden(NagayaError):
    """You may not do this; it needs {needs}."""

    code = "forbidden"
    status = 403
    type = "permission_error"
    ja = "この操作は許されていません。必要なもの: {needs}。"


class TenantMismatch(NagayaError):
    """The request names a tenant that its token does not belong to."""

    code = "tenant_mismatch"
    status = 403
    type = "permission_error"
    ja = "リクエストが、トークンの属さないテナントを指しています。"


class CsrfRefused(NagayaError):
    """A cookie sign-in needs the X-CSRF-Token header to equal the csrf_token cookie."""

    code = "csrf_failed"
    status = 403
    type = "permission_error"
    ja = "Cookie でのサインインには、csrf_token Cookie と同じ値の X-CSRF-Token ヘッダーが必要です。"


class OriginRefused(NagayaError):
    """Pages of this origin may not call this server in this way; an operator names origins in `cors_origins`."""

    code = "origin_refused"
    status = 403
    type = "permission_error"
    ja = "このオリジンのページからは、この方法でこのサーバーを呼べません。許すオリジンは運用者が `cors_origins` に書きます。"


class MfaRequired(NagayaError):
    """This tenant requires multi-factor sign-in; sign in again with a second factor."""

    code = "mfa_required"
    status = 403
    type = "permission_error"
    ja = "このテナントは多要素認証を求めています。第 2 要素でサインインし直してください。"


class SsoRequired(NagayaError):
    """This tenant requires sign-in through its own identity provider; API keys and local tokens do not enter."""

    code = "sso_required"
    status = 403
    type = "permission_error"
    ja = "このテナントは自社の ID プロバイダーでのサインインを求めています。API キーやローカルトークンでは入れません。"


class RateLimited(NagayaError):
    """Too many requests for this tenant; wait and try again."""

    code = "rate_limit_exceeded"
    status = 429
    type = "rate_limit_error"
    ja = "このテナントのリクエストが多すぎます。しばらく待ってからもう一度試してください。"


class TooManyMemories(NagayaError):
    """One owner has at most {limit} memories; delete some, or let them expire."""

    code = "too_many_memories"
    status = 409
    type = "invalid_request_error"
    ja = "1 人が持てる記憶は {limit} 件までです。いくつか削除するか、期限を付けてください。"


class TooManyStreams(RateLimited):
    """The tenant has {limit} streams open on this server, which is its limit; let some end first."""

    code = "too_many_streams"
    ja = "このテナントは、このサーバーで上限の {limit} 本のストリームを開いています。終わるのを待ってください。"


class WorkspaceRefused(NagayaError):
    """No workspace of this name is open to the caller; GET /v1/workspaces lists those that are."""

    code = "workspace_refused"
    status = 403
    type = "permission_error"
    ja = "この名前のワークスペースには入れません。入れるものは GET /v1/workspaces で確認できます。"


# --- the tenant -----------------------------------------------------------------------------------------------


class TenantIdInvalid(NagayaError):
    """Tenant id {value!r} is refused: {rule}."""

    code = "tenant_id_invalid"
    status = 400
    type = "invalid_request_error"
    ja = "テナント ID {value!r} は使えません: {rule_ja}。"


class TenantExists(NagayaError):
    """Tenant id {value!r} is taken; choose another."""

    code = "tenant_exists"
    status = 409
    type = "invalid_request_error"
    ja = "テナント ID {value!r} は使われています。別の ID を選んでください。"


class TenantLookAlike(NagayaError):
    """Tenant id {value!r} looks like the existing {other!r}; choose one that nobody can mistake for it."""

    code = "tenant_id_look_alike"
    status = 409
    type = "invalid_request_error"
    ja = "テナント ID {value!r} は既にある {other!r} と紛らわしいため使えません。見間違えない ID を選んでください。"


class TenantNotOpen(NagayaError):
    """Tenant is {state}; only an active or trial tenant can be entered."""

    code = "tenant_not_open"
    status = 403
    type = "permission_error"
    ja = "テナントの状態は {state} です。入れるのは active か trial のテナントだけです。"


class TenantSuspended(TenantNotOpen):
    """Tenant is suspended; `nagaya tenant resume ID` lifts it."""

    code = "tenant_suspended"
    ja = "テナントは停止中です。`nagaya tenant resume ID` で再開できます。"


class TenantExpired(TenantNotOpen):
    """Tenant has expired; `nagaya tenant set ID expires_at=...` extends it."""

    code = "tenant_expired"
    ja = "テナントの期限が切れています。`nagaya tenant set ID expires_at=...` で延長できます。"


class TransitionRefused(NagayaError):
    """A tenant that is {state} cannot become {wanted}; from here it can become: {allowed}."""

    code = "tenant_transition_refused"
    status = 409
    type = "invalid_request_error"
    ja = "{state} のテナントは {wanted} になれません。ここからなれるのは: {allowed}。"


class NoTenant(NagayaError):
    """No tenant was entered; call `nagaya.enter(token)` and open a session with the entrance it returns."""

    code = "no_tenant"
    status = 500
    ja = "テナントに入っていません。`nagaya.enter(token)` の返す Entrance でセッションを開いてください。"


class SessionClosed(NagayaError):
    """This tenant session is closed; open a new one with a fresh entrance."""

    code = "session_closed"
    status = 401
    type = "authentication_error"
    ja = "このテナントセッションは閉じています。新しい Entrance で開き直してください。"


# --- keys and records -----------------------------------------------------------------------------------------


class SealBroken(NagayaError):
    """A stored record does not open: it was altered, moved or sealed by another key. Restore it from a backup."""

    code = "seal_broken"
    status = 500
    ja = "保存された記録が開けません。改ざん・移動されたか、別の鍵で封じられています。バックアップから戻してください。"


class CommitmentBroken(SealBroken):
    """A stored record names another key than the one it was sealed under. Restore it from a backup."""

    ja = "保存された記録が、封じた鍵とは別の鍵を名乗っています。バックアップから戻してください。"


class KeyDisabled(NagayaError):
    """The tenant's key is disabled by its owner; `nagaya key restore ID` enables it. Do not retry before."""

    code = "key_disabled"
    status = 403
    type = "permission_error"
    ja = "テナントの鍵は持ち主によって無効にされています。`nagaya key restore ID` で有効に戻せます。それまで再試行しないでください。"


class KeyAccessRefused(KeyDisabled):
    """The tenant's key service does not let Nagaya use the key ({needs}); its owner grants that there. Do not retry before."""

    code = "key_access_refused"
    ja = "テナントの鍵サービスが鍵の使用を許していません（{needs}）。持ち主がそこで許可します。それまで再試行しないでください。"


class KeyDestroyed(NagayaError):
    """The tenant's key was destroyed; what it sealed cannot be read any more, by anybody."""

    code = "key_destroyed"
    status = 410
    type = "permission_error"
    ja = "テナントの鍵は破棄されました。その鍵で封じたものは、もう誰にも読めません。"


class KeyUnreachable(NagayaError):
    """The key service did not answer; try again later."""

    code = "key_unreachable"
    status = 503
    ja = "鍵サービスが応答しません。後でもう一度試してください。"


class KeyExhausted(NagayaError):
    """The tenant's key version has sealed as many records as it may; `nagaya key rotate ID` makes a new one."""

    code = "key_exhausted"
    status = 503
    ja = "テナントの鍵の版が、封じてよい記録の数に達しました。`nagaya key rotate ID` で新しい版を作れます。"


class KeyNotOurs(NagayaError):
    """This tenant's key lives in the tenant's own key service; disable or enable it there."""

    code = "key_not_ours"
    status = 409
    type = "invalid_request_error"
    ja = "このテナントの鍵はテナント自身の鍵サービスにあります。そこで無効化・有効化してください。"


class KeyMissing(NagayaError):
    """The key service has no key {key!r} at {place}: it was deleted for good, or the address is wrong."""

    code = "key_missing"
    status = 503
    ja = "鍵サービスの {place} に鍵 {key!r} がありません。完全に削除されたか、アドレスが間違っています。"


class KeyGone(NagayaError):
    """The key service no longer holds the key of tenant {tenant!r}; put it back from a backup. A new one would open nothing that is stored."""

    code = "key_gone"
    status = 409
    type = "invalid_request_error"
    ja = "テナント {tenant!r} の鍵が鍵サービスにありません。バックアップから戻してください。新しい鍵では保存済みのものを開けません。"


class RootKeyRefused(NagayaError):
    """The root key cannot be used: {problem}."""

    code = "root_key_refused"
    status = 500
    ja = "ルート鍵を使えません: {problem_ja}。"


# --- stores and other parts -----------------------------------------------------------------------------------


class ConditionFailed(NagayaError):
    """A conditional write found another revision than it expected."""

    code = "condition_failed"
    status = 409
    type = "invalid_request_error"
    ja = "条件付き書き込みの版が期待と違いました。"


class StoreDamaged(NagayaError):
    """The tenant's store is damaged or is not a Nagaya store; restore it from a backup ({place})."""

    code = "store_damaged"
    status = 503
    ja = "テナントのストアが壊れているか、Nagaya のストアではありません。バックアップから戻してください（{place}）。"


class StoreNewer(StoreDamaged):
    """The tenant's store was written by a newer Nagaya (format {found}, this program knows {known}); upgrade. ({place})"""

    code = "store_newer"
    ja = "テナントのストアは新しい Nagaya が書いたものです（形式 {found}、このプログラムは {known} まで）。プログラムを更新してください（{place}）。"


class StoreFull(NagayaError):
    """The disk is full: nothing was written. Free space on the volume and repeat."""

    code = "store_full"
    status = 507
    ja = "ディスクが一杯のため、何も書き込まれていません。空きを作ってからもう一度行ってください。"


class StoreReadOnly(NagayaError):
    """The data folder cannot be written: nothing was written. Give this user write permission and repeat."""

    code = "store_read_only"
    status = 503
    ja = "データフォルダーに書き込めず、何も書き込まれていません。このユーザーに書き込み権限を与えてください。"


class StoreUnreachable(NagayaError):
    """The tenant's store did not answer in time; whether a write was kept is not known. Read it, then repeat."""

    code = "store_unreachable"
    status = 503
    ja = "テナントのストアが時間内に応答しません。書き込みが残ったかは不明です。読んで確かめてからもう一度行ってください。"


class StoreBusy(StoreUnreachable):
    """The tenant's store asks for fewer requests and nothing was written; wait and try again."""

    code = "store_busy"
    ja = "テナントのストアが要求を減らすよう求めており、何も書き込まれていません。しばらく待ってからもう一度試してください。"


class BlobsUnreachable(NagayaError):
    """The tenant's blob storage did not answer in time; whether a write was kept is not known. Read it, then repeat."""

    code = "blobs_unreachable"
    status = 503
    ja = "テナントのブロブ保存先が時間内に応答しません。書き込みが残ったかは不明です。読んで確かめてからもう一度行ってください。"


class RunTooLong(NagayaError):
    """The run took longer than {limit_s} s and was ended; ask for less at once."""

    code = "run_too_long"
    status = 504
    ja = "実行が {limit_s} 秒を超えたため終了しました。一度に求める内容を減らしてください。"


class ToolServerFailed(NagayaError):
    """The tool server at {host!r} failed: {problem}; check its URL and credential, or ask again later."""

    code = "tool_server_failed"
    status = 502
    ja = "ツールのサーバー {host!r} が失敗しました: {problem}。URL と認証情報を確かめるか、後でもう一度試してください。"


class NoBlobStore(NagayaError):
    """This tenant has no place for files; the operator sets one for it (`nagaya tenant create … --blobs URL`) or for all
    tenants (`default_blobs`)."""

    code = "no_blob_store"
    status = 503
    ja = (
        "このテナントにはファイルの保存先がありません。運用者がテナントごとに（`nagaya tenant create … --blobs URL`）"
        "または全テナント向けに（`default_blobs`）設定します。"
    )


class BlobTooLarge(NagayaError):
    """A file may have at most {limit_bytes} bytes; nothing was written. Divide it."""

    code = "file_too_large"
    status = 413
    type = "invalid_request_error"
    ja = "ファイルは {limit_bytes} バイトまでです。何も書き込まれていません。分けてください。"


class StoreResting(StoreUnreachable):
    """The tenant's store kept failing and is left alone for a moment; nothing was sent. Try again shortly."""

    code = "store_resting"
    ja = "テナントのストアの失敗が続いたため、少しの間休ませています。何も送られていません。少し後でもう一度試してください。"


class StorePermissionMissing(NagayaError):
    """The tenant's store refused its role: nothing was written. Grant it {permission} and repeat."""

    code = "store_permission_missing"
    status = 503
    ja = "テナントのストアがロールの操作を拒み、何も書き込まれていません。{permission} を与えてからもう一度行ってください。"


class StoreLoginRefused(NagayaError):
    """The tenant's store refused the user or password; correct the tenant's connection secret."""

    code = "store_login_refused"
    status = 503
    ja = "テナントのストアがユーザーまたはパスワードを拒みました。テナントの接続シークレットを直してください。"


class StoreRoleUnsafe(NagayaError):
    """The store's role could reach every tenant's rows ({problem}); connect with a role that owns nothing there."""

    code = "store_role_unsafe"
    status = 503
    ja = "ストアのロールが全テナントの行に届いてしまいます（{problem}）。そこで何も所有しないロールで接続してください。"


class CacheUnreachable(NagayaError):
    """The shared cache did not answer; try again later."""

    code = "cache_unreachable"
    status = 503
    ja = "共有キャッシュが応答しません。後でもう一度試してください。"


class IndexDamaged(NagayaError):
    """A piece of the search index is damaged; it is made anew from the documents when they are indexed again."""

    code = "index_damaged"
    status = 503
    ja = "検索インデックスの一部が壊れています。文書をもう一度索引付けすれば作り直されます。"


class IndexOutdated(NagayaError):
    """A piece of the search index was made by another Nagaya (format {found}, this program knows {known}); index again."""

    code = "index_outdated"
    status = 503
    ja = "検索インデックスの一部は別の版の Nagaya が作ったものです（形式 {found}、このプログラムは {known}）。索引付けをやり直してください。"


class EmbeddingsChanged(NagayaError):
    """The vector store was built with the embedding model {was}; the tenant now has {now}. Make a new store with it."""

    code = "embeddings_changed"
    status = 409
    type = "invalid_request_error"
    ja = "このベクトルストアは埋め込みモデル {was} で作られましたが、テナントのモデルは {now} です。新しいストアを作ってください。"


class VectorStoreExpired(NagayaError):
    """The vector store was not used for as long as it was to be kept, and what it held is gone; make a new one."""

    code = "vector_store_expired"
    status = 400
    type = "invalid_request_error"
    ja = "ベクトルストアは使われないまま保持期間を過ぎ、中身は削除されました。新しいストアを作ってください。"


class RegistryNewer(NagayaError):
    """The registry was written by a newer Nagaya (schema {found}, this program knows {known}); upgrade the program."""

    code = "registry_newer"
    status = 500
    ja = "レジストリは新しい Nagaya が書いたものです（スキーマ {found}、このプログラムは {known} まで）。プログラムを更新してください。"


class RegistryNotReady(NagayaError):
    """Workspaces need a registry that only this release uses: end servers of the release before, then run the post
    phase of the registry's migrations."""

    code = "registry_not_ready"
    status = 409
    ja = (
        "ワークスペースを作るには、レジストリをこのリリースだけが使っている必要があります。"
        "前のリリースのサーバーを終了し、レジストリの移行の post 段階を実行してください。"
    )


class RegistryUnreachable(NagayaError):
    """The tenant registry did not answer; try again later. ({detail})"""

    code = "registry_unreachable"
    status = 503
    ja = "テナントのレジストリが応答しません。後でもう一度試してください。（{detail}）"


class RegistryDamaged(NagayaError):
    """The registry {place} is damaged or is not a Nagaya registry; restore it from a backup."""

    code = "registry_damaged"
    status = 503
    ja = "レジストリ {place} が壊れているか、Nagaya のレジストリではありません。バックアップから戻してください。"


class ModelFailed(NagayaError):
    """The tenant's model failed; try again, or ask its provider."""

    code = "model_error"
    status = 502
    ja = "テナントのモデルが失敗しました。もう一度試すか、モデルの提供元に確かめてください。"


class ModelUnreachable(ModelFailed):
    """The tenant's model did not answer in time; try again later."""

    code = "model_unreachable"
    status = 503
    ja = "テナントのモデルが時間内に応答しません。後でもう一度試してください。"


class ModelRefusedKey(ModelFailed):
    """The tenant's model refused its key; set another with `nagaya tenant set ID model_key=...`."""

    code = "model_key_refused"
    status = 502
    ja = "テナントのモデルが API キーを拒みました。`nagaya tenant set ID model_key=...` で設定し直してください。"


class ModelRateLimited(ModelFailed):
    """The tenant's model account is rate limited; try again later."""

    code = "model_rate_limited"
    status = 429
    type = "rate_limit_error"
    ja = "テナントのモデルのアカウントが利用制限中です。後でもう一度試してください。"


class ContextTooLong(ModelFailed):
    """The conversation is longer than the model's window; set truncation to 'auto' or start a new conversation."""

    code = "context_length_exceeded"
    status = 400
    type = "invalid_request_error"
    ja = "会話がモデルの窓より長くなりました。truncation を 'auto' にするか、新しい会話を始めてください。"


class ContentFiltered(ModelFailed):
    """The model's content filter refused the request or its answer."""

    code = "content_filter"
    status = 400
    type = "invalid_request_error"
    ja = "モデルのコンテンツフィルターが要求または応答を拒みました。"


class AnswerCut(ModelFailed):
    """The model's answer was cut off before its end; ask again."""

    code = "model_answer_cut"
    ja = "モデルの応答が途中で切れました。もう一度試してください。"


class AnswerEndless(ModelFailed):
    """The model's answer did not end and was stopped after {limit_characters} characters; set max_output_tokens."""

    code = "model_answer_endless"
    ja = "モデルの応答が終わらないため {limit_characters} 文字で止めました。max_output_tokens を設定してください。"


class AnswerNotUnderstood(ModelFailed):
    """The tenant's model sent what is not an answer in its protocol ({kind}); check the model's address and server."""

    code = "model_answer_invalid"
    ja = "テナントのモデルがプロトコルに合わない応答を返しました（{kind}）。モデルのアドレスとサーバーを確かめてください。"


class ModelAddressWrong(ModelFailed):
    """The server at the model's address knows no such model or path, or redirects elsewhere; correct the address."""

    code = "model_address_wrong"
    ja = "モデルのアドレスのサーバーに該当するモデルやパスがないか、別の場所へ転送されます。アドレスを直してください。"


class ModelRefusedRequest(ModelFailed):
    """The tenant's model refused the request ({detail}); another model or fewer parameters may do."""

    code = "model_request_refused"
    status = 400
    type = "invalid_request_error"
    ja = "テナントのモデルが要求を拒みました（{detail}）。別のモデルにするか、パラメーターを減らしてください。"


class MissingExtra(NagayaError):
    """{feature} needs an optional package; install it with: pip install 'nagaya[{extra}]'."""

    code = "missing_extra"
    status = 501
    ja = "{feature} には追加パッケージが必要です。次で入ります: pip install 'nagaya[{extra}]'。"


class SettingsInvalid(NagayaError):
    """Setting {name!r} is not valid: {problem}."""

    code = "settings_invalid"
    status = 500
    ja = "設定 {name!r} が正しくありません: {problem}。"


class AddressRefused(NagayaError):
    """The address {host!r} is refused: it points inside. An operator can allow it with `allowed_hosts`."""

    code = "address_refused"
    status = 400
    type = "invalid_request_error"
    ja = "アドレス {host!r} は内部を指すため使えません。運用者は `allowed_hosts` で許可できます。"


class RegionRefused(NagayaError):
    """Region {region!r} is refused: the tenant is pinned to {allowed}. Moving the pin is a move of the tenant."""

    code = "region_refused"
    status = 400
    type = "invalid_request_error"
    ja = "リージョン {region!r} は使えません。テナントは {allowed} に固定されています。固定先の変更はテナントの移動になります。"


class PermissionMissing(NagayaError):
    """The cloud account of {room} refused {action}; allow it to the role or identity that Nagaya uses there."""

    code = "permission_missing"
    status = 502
    ja = "{room} のクラウドアカウントが {action} を拒みました。Nagaya がそこで使うロールまたは ID に許可してください。"


class CloudCredentialsRefused(NagayaError):
    """There are no valid cloud credentials for {room} ({detail}); check role, trust policy and connection secret."""

    code = "cloud_credentials_refused"
    status = 502
    ja = "{room} の有効なクラウド認証情報がありません（{detail}）。ロール・信頼ポリシー・接続シークレットを確かめてください。"


class CloudUnreachable(NagayaError):
    """The cloud account of {room} did not answer; try again later."""

    code = "cloud_unreachable"
    status = 503
    ja = "{room} のクラウドアカウントが応答しません。後でもう一度試してください。"


class ConnectionSecretInvalid(NagayaError):
    """The secret '{name}' is not a valid connection: {problem}."""

    code = "connection_secret_invalid"
    status = 400
    type = "invalid_request_error"
    ja = "シークレット '{name}' は正しい接続情報ではありません: {problem}。"


class ExternalIdRefused(NagayaError):
    """The ExternalId of an AWS role is made here and cannot be chosen; put the one you were given into its trust policy."""

    code = "external_id_refused"
    status = 400
    type = "invalid_request_error"
    ja = "AWS ロールの ExternalId はここで作られ、選べません。渡されたものを信頼ポリシーに入れてください。"


class AuditBroken(NagayaError):
    """The audit log does not verify at entry {entry}: {problem}."""

    code = "audit_broken"
    status = 500
    ja = "監査ログは項目 {entry} で検証に失敗しました: {problem}。"


# --- background work ------------------------------------------------------------------------------------------


class JobRefused(NagayaError):
    """The job is refused: {reason}."""

    code = "job_refused"
    status = 403
    type = "permission_error"
    ja = "ジョブは拒否されました: {reason}。"


class JobKindUnknown(NagayaError):
    """This server does not know such work yet; a newer one will take it."""

    code = "job_kind_unknown"
    status = 503
    ja = "このサーバーはまだこの種類の作業を知りません。新しいサーバーが引き受けます。"


class JobInterrupted(NagayaError):
    """The job's server died in the middle of it too often; look at what it does before asking for it again."""

    code = "job_interrupted"
    status = 500
    ja = "ジョブの実行中にサーバーが何度も落ちました。もう一度頼む前に、その内容を確かめてください。"


class JobsUnreachable(NagayaError):
    """The database of background work cannot be reached; retry in {retry_after_s} seconds."""

    code = "jobs_unreachable"
    status = 503
    ja = "バックグラウンド作業のデータベースに接続できません。{retry_after_s} 秒後に再試行してください。"

    def __init__(self) -> None:
        super().__init__(retry_after_s=5)
        self.facts = {"retry_after_s": 5}
        self.args = (self.message("en"),)


class JobsElsewhere(NagayaError):
    """Background work of this process already runs over another database; one process runs one."""

    code = "jobs_elsewhere"
    status = 500
    ja = "このプロセスのバックグラウンド作業は別のデータベースで動いています。1 つのプロセスで動かせるのは 1 つです。"


# --- documents ------------------------------------------------------------------------------------------------


class DocumentUnreadable(NagayaError):
    """The document cannot be read: {problem}."""

    code = "document_unreadable"
    status = 400
    type = "invalid_request_error"
    ja = "文書を読み取れません: {problem_ja}。"

    PROBLEMS: ClassVar[dict[str, tuple[str, str]]] = {
        "unsupported": (
            "it is none of PDF, DOCX, PPTX, XLSX, HTML, Markdown, CSV, JSON, plain text, PNG, JPEG, TIFF, GIF or WebP",
            "PDF・DOCX・PPTX・XLSX・HTML・Markdown・CSV・JSON・テキスト・PNG・JPEG・TIFF・GIF・WebPのいずれでもありません",
        ),
        "picture": (
            "it is a picture, and nagaya[images], which recognises the text in pictures, is not installed on this server",
            "画像です。画像の文字を認識する nagaya[images] がこのサーバーにインストールされていません",
        ),
        "corrupt": (
            "it is damaged, or is not what it says it is; save it again and send it anew",
            "壊れているか、名乗っている形式ではありません。保存し直してから送ってください",
        ),
        "encrypted": (
            "it is protected by a password; send it without one",
            "パスワードで保護されています。保護を外してから送ってください",
        ),
        "no_text": (
            "it holds no text; the pictures inside a document are not read, so send such pages as PNG, JPEG or TIFF",
            "文字が含まれていません。文書の中の画像は読み取らないため、画像だけのページは PNG・JPEG・TIFF で送ってください",
        ),
        "too_large": (
            "it holds or unpacks to more than a document may; divide it",
            "内容または展開後の大きさが上限を超えています。分割してください",
        ),
        "too_many_parts": (
            "it has more pages, paragraphs or files inside than a document may; divide it",
            "ページ・段落・内部ファイルの数が上限を超えています。分割してください",
        ),
        "timed_out": (
            "reading it takes longer than a document may; divide it or save it in another format",
            "読み取りに時間がかかりすぎます。分割するか、別の形式で保存してください",
        ),
    }  # fmt: skip

    def __init__(self, reason: str) -> None:
        problem, problem_ja = self.PROBLEMS[reason]
        super().__init__(problem=problem, problem_ja=problem_ja)
        self.reason = reason


class DocumentReaderLost(NagayaError):
    """The process that read the document was ended from outside; send or index it again."""

    code = "document_reader_lost"
    status = 503
    ja = "文書を読み取っていたプロセスが外部から終了されました。もう一度送るか、索引し直してください。"


# --- bundles --------------------------------------------------------------------------------------------------


class BundleBroken(NagayaError):
    """The bundle cannot be imported: {problem}. Nothing of it was kept."""

    status = 400
    type = "invalid_request_error"
    code = "bundle_broken"
    ja = "バンドルを取り込めません: {problem_ja}。何も残していません。"
    PROBLEMS: ClassVar[dict[str, tuple[str, str]]] = {
        "none": ("it is no bundle of this format", "この形式のバンドルではありません"),
        "cut": ("it ends before its end; go on with its export", "途中で切れています。エクスポートを再開してください"),
        "altered": ("it was altered after it was signed", "署名された後に変更されています"),
        "newer": (
            "it holds what this release does not know; use a newer one",
            "この版が知らない内容が含まれています。新しい版を使ってください",
        ),
        "order": (
            "what is in it does not stand in the order in which it is exported",
            "内容の並び順がエクスポートされる順序と違います",
        ),
        "count": ("what arrived is not what it says it holds", "届いた内容が、記載された内容と一致しません"),
    }

    def __init__(self, reason: str) -> None:
        problem, problem_ja = self.PROBLEMS[reason]
        super().__init__(problem=problem, problem_ja=problem_ja)
        self.reason = reason


class BundleKeyRefused(NagayaError):
    """The bundle cannot be opened or locked: {problem}."""

    status = 400
    type = "invalid_request_error"
    code = "bundle_key_refused"
    ja = "バンドルを開くこと、または鍵をかけることができません: {problem_ja}。"
    PROBLEMS: ClassVar[dict[str, tuple[str, str]]] = {
        "short": (
            "the passphrase needs at least 12 characters",
            "パスフレーズは 12 文字以上にしてください",
        ),
        "passphrase": ("it needs a passphrase (--passphrase)", "パスフレーズ（--passphrase）が必要です"),
        "key": ("it needs the recipient's private key (--identity)", "受取人の秘密鍵（--identity）が必要です"),
        "other": ("the passphrase or key is another", "パスフレーズか鍵が違います"),
        "form": (
            "the key file is no X25519 key in PEM",
            "鍵ファイルが PEM 形式の X25519 鍵ではありません",
        ),
    }

    def __init__(self, reason: str) -> None:
        problem, problem_ja = self.PROBLEMS[reason]
        super().__init__(problem=problem, problem_ja=problem_ja)
        self.reason = reason


class BundleSignerUnknown(NagayaError):
    """The bundle was signed by {signer}, which is not who was named; if you trust that key, give it as --signer."""

    code = "bundle_signer_unknown"
    status = 400
    type = "invalid_request_error"
    ja = "バンドルの署名者は {signer} で、指定された署名者ではありません。信頼できるなら --signer で指定してください。"


class BundleInTheWay(NagayaError):
    """{place} is there already; name another file, or go on with it where it was cut off (--resume)."""

    code = "bundle_in_the_way"
    status = 409
    type = "invalid_request_error"
    ja = "{place} は既にあります。別のファイルを指定するか、途中で切れたものなら --resume で続けてください。"


class BundleBusy(NagayaError):
    """{place} is still being written by another export; wait until that has ended."""

    code = "bundle_busy"
    status = 409
    type = "invalid_request_error"
    ja = "{place} は別のエクスポートが書き込み中です。終わるまでお待ちください。"


class RecordsDiffer(NagayaError):
    """What lies here under {what!r} is not what the import would put there: it was changed since. It was left as it is."""

    code = "records_differ"
    status = 409
    type = "invalid_request_error"
    ja = "{what!r} として保存されている内容が取り込む内容と異なります。以前の取り込みの後に変更されたため、そのまま残しました。"


class ExportSealed(NagayaError):
    """The export is encrypted and cannot be read: {problem}."""

    code = "export_sealed"
    status = 400
    type = "invalid_request_error"
    ja = "エクスポートは暗号化されていて読めません: {problem_ja}。"
    PROBLEMS: ClassVar[dict[str, tuple[str, str]]] = {
        "needed": ("say where its AES key is (--aes-key)", "AES 鍵のありかを --aes-key で指定してください"),
        "other": ("the key is another, or it was altered", "鍵が違うか、内容が変更されています"),
        "length": ("an AES key has 16, 24 or 32 bytes", "AES 鍵は 16、24、32 バイトのいずれかです"),
        "cipher": ("it is sealed by a cipher other than AES", "AES 以外の方式で暗号化されています"),
    }

    def __init__(self, reason: str) -> None:
        problem, problem_ja = self.PROBLEMS[reason]
        super().__init__(problem=problem, problem_ja=problem_ja)
        self.reason = reason


class BundleNotBegun(NagayaError):
    """{place} is no unfinished bundle of tenant {tenant!r} from this platform; there is nothing to go on with."""

    code = "bundle_not_begun"
    status = 409
    type = "invalid_request_error"
    ja = "{place} は、このプラットフォームが書きかけたテナント {tenant!r} のバンドルではなく、続きから再開できません。"


# --- the command line -----------------------------------------------------------------------------------------


class NoDataFolder(NagayaError):
    """There is no Nagaya data folder at {place}; `nagaya tenant create` or `nagaya serve` makes one there."""

    code = "no_data_folder"
    status = 404
    type = "invalid_request_error"
    ja = "{place} に Nagaya のデータフォルダーがありません。`nagaya tenant create` か `nagaya serve` で作られます。"


class CannotListen(NagayaError):
    """Cannot listen on {place}: {detail}. Choose another address with --host and --port."""

    code = "cannot_listen"
    ja = "{place} で待ち受けできません: {detail}。--host と --port で別のアドレスを選んでください。"


class ServerUnreachable(NagayaError):
    """The server at {url} does not answer ({detail}); check the URL and that it runs."""

    code = "server_unreachable"
    status = 503
    ja = "{url} のサーバーが応答しません（{detail}）。URL とサーバーが動いていることを確かめてください。"


class ServerRefused(NagayaError):
    """{said}"""

    code = "server_refused"
    status = 502
    ja = "{said}"

    def __init__(self, said: str, *, shape: dict[str, object]) -> None:
        # A server's own error, as it was sent: the shape is shown to programs, the message to people.
        super().__init__(said=said)
        self.shape = shape


class CommandFailed(NagayaError):
    """Something failed that Nagaya did not expect ({kind}); NAGAYA_LOG_LEVEL=debug shows where."""

    code = "command_failed"
    ja = "予期しない失敗が起きました（{kind}）。NAGAYA_LOG_LEVEL=debug で場所が分かります。"
