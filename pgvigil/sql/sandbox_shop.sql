-- customers: who buys
CREATE TABLE public.customers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    email text NOT NULL UNIQUE,
    name text NOT NULL,
    country text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now()
)

-- orders: what they bought
CREATE TABLE public.orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer_id bigint NOT NULL REFERENCES public.customers,
    status text NOT NULL CHECK (status IN ('open', 'paid', 'shipped', 'cancelled')),
    total numeric(12, 2) NOT NULL CHECK (total >= 0),
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now()
)

-- orders_by_customer: the foreign key's index
CREATE INDEX orders_customer_id_idx ON public.orders (customer_id)

-- payments: amounts as numeric, with the column that a backfill is to fill in cents
CREATE TABLE public.payments (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    order_id bigint NOT NULL REFERENCES public.orders,
    method text NOT NULL,
    amount numeric(12, 2) NOT NULL,
    amount_cents bigint,
    paid_at timestamptz NOT NULL DEFAULT pg_catalog.now()
)

-- payments_by_order: the foreign key's index
CREATE INDEX payments_order_id_idx ON public.payments (order_id)

-- events: one partition per month, by time of creation
CREATE TABLE public.events (
    id bigint GENERATED ALWAYS AS IDENTITY,
    created_at timestamptz NOT NULL DEFAULT pg_catalog.now(),
    customer_id bigint NOT NULL,
    kind text NOT NULL,
    payload jsonb NOT NULL,
    PRIMARY KEY (id, created_at)
) PARTITION BY RANGE (created_at)

-- events_by_customer: how the application reads them
CREATE INDEX events_customer_id_created_at_idx ON public.events (customer_id, created_at)

-- events_months: the fifteen months behind us, this one and the next, whole months of UTC
DO $$
DECLARE
    this_month constant timestamptz := pg_catalog.date_trunc('month', pg_catalog.now(), 'UTC');
    lower_bound timestamptz;
BEGIN
    FOR month IN -15..1 LOOP
        lower_bound := this_month + month * interval '1 month';
        EXECUTE pg_catalog.format(
            'CREATE TABLE public.%I PARTITION OF public.events FOR VALUES FROM (%L) TO (%L)',
            'events_' || pg_catalog.to_char(lower_bound, 'YYYY_MM'),
            lower_bound,
            lower_bound + interval '1 month'
        );
    END LOOP;
END
$$

-- fill_customers: two thousand
INSERT INTO public.customers (email, name, country, created_at)
SELECT
    'customer' || n || '@example.com',
    (ARRAY['Ada', 'Boris', 'Chloé', 'Dürer', 'Émile', 'Fatima', '健太'])[1 + n % 7] || ' ' || n,
    (ARRAY['DE', 'FR', 'PL', 'JP', 'US'])[1 + n % 5],
    pg_catalog.date_trunc('month', pg_catalog.now()) - n * interval '4 hours'
FROM pg_catalog.generate_series(1, 2000) AS n

-- fill_orders: six thousand, the same on every sandbox of the month
INSERT INTO public.orders (customer_id, status, total, created_at)
SELECT
    1 + n * 7919 % 2000,
    (ARRAY['open', 'paid', 'shipped', 'cancelled'])[1 + n % 4],
    (n * 7907 % 100000)::numeric / 100,
    pg_catalog.date_trunc('month', pg_catalog.now()) - n * interval '80 minutes'
FROM pg_catalog.generate_series(1, 6000) AS n

-- fill_payments: one for each order
INSERT INTO public.payments (order_id, method, amount, paid_at)
SELECT id, (ARRAY['card', 'transfer', 'cash'])[1 + id % 3], total, created_at + interval '1 hour'
FROM public.orders
ORDER BY id

-- fill_events: 36 000 over the fifteen months behind us
INSERT INTO public.events (created_at, customer_id, kind, payload)
SELECT
    pg_catalog.date_trunc('month', pg_catalog.now()) - n * (
        pg_catalog.date_trunc('month', pg_catalog.now())
        - (pg_catalog.date_trunc('month', pg_catalog.now()) - interval '15 months')
    ) / 36000,
    1 + n * 7919 % 2000,
    (ARRAY['view', 'search', 'cart', 'checkout'])[1 + n % 4],
    pg_catalog.jsonb_build_object('page', n % 97, 'referrer', 'r' || n % 13)
FROM pg_catalog.generate_series(1, 36000) AS n

-- settle: statistics as a database in use has them
ANALYZE public.customers, public.orders, public.payments, public.events
